//! Which rows run in the next step: a state machine without clock, network or threads.
//!
//! [`Scheduler::handle`] says what the world did, [`Scheduler::poll`] until `None` what the caller must
//! now do. Several events may be handed in before the next poll: what arrives together then starts
//! together.
//!
//! ```
//! use flotilla_scheduler::{Action, Event, FinishReason, Request, Scheduler, Settings};
//! use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepOutcome, step::Sampled};
//! use std::time::Duration;
//!
//! let mut scheduler = Scheduler::new(Settings::default())?;
//! let sequence = SequenceId(1);
//! scheduler.handle(Duration::ZERO, Event::GroupFormed { epoch: Epoch(1), kv_blocks: KvBlocks::plain(1024) });
//! scheduler.handle(
//!     Duration::ZERO,
//!     Event::Arrived(Request {
//!         sequence,
//!         prompt: vec![11, 12, 13],
//!         tokens_max: 1,
//!         ..Request::default()
//!     }),
//! );
//!
//! let Some(Action::Step(plan)) = scheduler.poll() else { panic!("a step for the workers") };
//! assert_eq!(plan.work[0].tokens, [11, 12, 13]);
//! assert_eq!(scheduler.poll(), None); // one step in flight
//!
//! let sampled = vec![Sampled { sequence, token: 14, logprobs: None }];
//! let outcome = StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..Default::default() };
//! scheduler.handle(Duration::from_millis(20), Event::Stepped(outcome));
//! assert_eq!(scheduler.poll(), Some(Action::Emit { sequence, token: 14, logprobs: None }));
//! assert!(matches!(scheduler.poll(), Some(Action::Finish { reason: FinishReason::Length, .. })));
//! # Ok::<(), flotilla_scheduler::SettingsError>(())
//! ```
//!
//! # The line
//!
//! All sequences stand in one line, in the order of their arrival. The first of them run, the others
//! wait:
//!
//! ```text
//!   oldest                                                          youngest
//!   [ decode  decode  prompt  decode  prompt ] [ preempted  new  new  new ]
//!     running, in the group: tables of blocks    waiting: tokens and no more
//! ```
//!
//! Nobody overtakes, so what makes progress certain is short: *the oldest sequence has rows in every
//! step*. It is never preempted, there is a row left for it however many decode
//! ([`Settings::tokens_per_step_max`] is at least [`Settings::sequences_max`]), and alone it fits in the
//! cache, for one that does not is ended by [`FinishReason::Length`].
//!
//! # One step
//!
//! 1. *Grow.* Each sequence that runs gets the blocks for its tokens, oldest first. Where blocks run out
//!    the youngest that runs is preempted: it goes back to the head of those that wait, and later runs
//!    again as a prompt of all its tokens. What it emitted stays emitted.
//! 2. *Decode.* Each sequence that lacks one row gets it: a long prompt delays nobody's next token.
//! 3. *Prompts.* The rows that are left go to those that lack more, in the order of the line. A prompt
//!    takes as many steps as it needs; the last chunk alone samples.
//! 4. *Admit.* The next in line joins if it fits with all its tokens, and one block to spare for each
//!    sequence that runs: so it is not preempted again in the same breath.
//!
//! # When the group is lost
//!
//! All that runs goes back to the head of the line, and the step in flight is forgotten. A token is
//! either emitted and part of the sequence, or unknown to everybody: sampling depends on (seed, position,
//! token) alone, so the recomputed step chooses what the lost one would have chosen.
//!
//! # What is deliberately absent
//!
//! The clock, chance, and any knowledge of devices, HTTP or text. Priorities and the prefix cache are
//! not here yet.
#![forbid(unsafe_code)]

mod blocks;
#[cfg(debug_assertions)]
mod check;
pub mod event;
mod group;
mod scheduler;
mod sequence;
pub mod settings;

pub use event::{Action, ClientId, Event, FinishReason, GroupFault, Rejection, Request, Usage};
pub use scheduler::{Load, Scheduler};
pub use settings::{Settings, SettingsError};
