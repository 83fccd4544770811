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
//! let kv_blocks = KvBlocks::plain(1024);
//! scheduler.handle(Duration::ZERO, Event::GroupFormed { epoch: Epoch(1), kv_blocks, stages: 1 });
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
//! assert_eq!(scheduler.poll(), None); // one token was asked for, and it is on its way
//!
//! let sampled = vec![Sampled { sequence, token: 14, logprobs: None }];
//! let outcome = StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..Default::default() };
//! scheduler.handle(Duration::from_millis(20), Event::Stepped(outcome));
//! assert!(matches!(scheduler.poll(), Some(Action::Emit { token: 14, .. })));
//! assert!(matches!(scheduler.poll(), Some(Action::Finish { reason: FinishReason::Length, .. })));
//! # Ok::<(), flotilla_scheduler::SettingsError>(())
//! ```
//!
//! # Who runs
//!
//! Sequences wait in a line and run in seats:
//!
//! ```text
//!   first                                    last
//!   [ decode  decode  prompt  decode  prompt ] [ 0: preempted | a: new new | b: new ] [ 1: preempted | b: new ]
//!     running, in the group: tables of blocks    waiting, by priority: tokens and no more
//! ```
//!
//! Who is next is told in `line.rs`: the lowest priority number, then what ran before, then the client that
//! has had least. Who does not fit holds up all behind it. What makes progress certain is short: *the leader, the first
//! that runs of those with the lowest priority number, has rows whenever it is ready*. It is never preempted, there is a
//! row left for it however many decode ([`Settings::tokens_per_step_max`] is at least [`Settings::sequences_max`]), and
//! alone it fits in the cache, for one that does not is ended by [`FinishReason::Length`]. Another leads only when it has
//! ended, or when one comes that is more important.
//!
//! One on trial ([`Event::OnTrial`]) goes before all of this: nobody else is taken in, and where it is to be alone what
//! runs goes back to the line as if it were preempted, the leader too.
//!
//! # One step
//!
//! 1. *Room.* Each sequence that decodes needs blocks for its next token, in the pools of the full and of
//!    the window layers. Where they run out, the least important, and of those the last, is preempted: it goes back
//!    to the line, and later runs again as a prompt of all its tokens, most of which it may find in the cache. What
//!    it emitted stays emitted.
//! 2. *Decode.* Each sequence that lacks one row gets it: a long prompt delays nobody's next token. With
//!    speculation it also tries guesses.
//! 3. *Prompts.* Those that run and those that are next share the rows that are left, by priority: among equals shorter
//!    ones go first, up to half, so that a long one delays them little. A prompt takes as many steps as it needs; the last
//!    chunk alone samples. What it begins with may be in the cache: then its rows begin behind that.
//!
//! # One step ahead
//!
//! A step is planned while the one before runs ([`Settings::steps_in_flight_max`]): the token that a sequence
//! samples in the one is the token of its row in the other, and the workers know it. Whoever needs the token
//! *here* first, for a mask or for guesses, sits out one step. What was planned for a sequence that turns out
//! to have ended is ignored when it comes back. Nobody is preempted while a step is in flight.
//!
//! # Stages
//!
//! Where the model is cut into stages, one behind the other, a step passes through all of them, and as many steps
//! run at once. Sequences are dealt into as many lanes, and steps go round the lanes: `lanes.rs` tells why. Each
//! lane runs ahead as the one lane of one stage does.
//!
//! # When the group is lost
//!
//! All that runs goes back to the line, and the steps in flight are forgotten. A token is either emitted and
//! part of the sequence, or unknown to everybody: sampling depends on (seed, position, token) alone, so the
//! recomputed step chooses what the lost one would have chosen.
//!
//! # What is deliberately absent
//!
//! The clock, chance, and any knowledge of devices, HTTP, text or grammars: of a mask it knows only whether it
//! is there.
#![forbid(unsafe_code)]

mod accounts;
mod batch;
mod cache;
#[cfg(debug_assertions)]
mod check;
mod drafts;
pub mod event;
mod group;
mod lanes;
mod line;
mod load;
mod moves;
mod scheduler;
mod sequence;
pub mod settings;

pub use drafts::Speculation;
pub use event::{Action, ClientId, Event, FinishReason, GroupFault, Rejection, Request, Trial, Usage};
pub use load::{Counters, Load};
pub use moves::Traveller;
pub use scheduler::Scheduler;
pub use settings::{Settings, SettingsError};
