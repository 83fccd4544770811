//! Thousands of random lives: arrivals, cancels, groups that come, shrink, answer wrongly and go, tiny
//! pools, events handed in one by one or in bursts. The world checks every action as it comes; at the
//! end everybody must have had exactly one last word, with the tokens of an uninterrupted run.
//!
//! A failure prints the shortest life that still fails, and keeps its seed in
//! `tests/random.proptest-regressions`, which the next run replays first. Commit that file only with
//! the fix of a real bug.

mod world;

use flotilla_scheduler::{ClientId, Event, FinishReason, Request, Settings, Speculation, Trial};
use flotilla_shared::KvBlocks;
use flotilla_shared::step::{STEPS_AHEAD_MAX, Sampled};
use flotilla_shared::{Epoch, SequenceId, StepOutcome};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use std::time::Duration;
use world::{End, World, request};

#[derive(Clone, Debug)]
enum Happening {
    Arrive {
        prompt_tokens: usize,
        /// Its prompt begins as that of all others of this family.
        family: u64,
        tokens_max: usize,
        stops: bool,
        guided: bool,
        client: u64,
        priority: i32,
        millis: Option<u64>,
    },
    /// A second request of a live sequence.
    ArriveTwice(usize),
    Cancel(usize),
    StepReturns,
    /// An outcome of the past, or of nobody's step.
    StaleOutcome {
        epochs_ago: u64,
        steps: u64,
    },
    WrongOutcome(Wrong),
    FormGroup {
        full: u32,
        window: u32,
    },
    MasksArrive,
    /// Somebody alone is let in, who may have ended; or all are again.
    Try(usize),
    TryNobody,
    TimePasses(u64),
    LoseGroup,
    /// The loss of an earlier group, or an earlier group itself.
    PastGroup,
    /// The caller gets to poll; what happened before it came in one burst.
    Poll,
}

#[derive(Clone, Copy, Debug)]
enum Wrong {
    OneLess,
    OneMore,
    Other,
}

fn arrival() -> impl Strategy<Value = Happening> {
    let tokens = (0..70usize, 0..4u64, 0..50usize);
    let millis = prop_oneof![9 => Just(None), 1 => (0..60u64).prop_map(Some)];
    (tokens, any::<bool>(), prop::bool::weighted(0.2), 0..3u64, -1..2i32, millis).prop_map(
        |((prompt_tokens, family, tokens_max), stops, guided, client, priority, millis)| Happening::Arrive {
            prompt_tokens,
            family,
            tokens_max,
            stops,
            guided,
            client,
            priority,
            millis,
        },
    )
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    let wrong = prop_oneof![Just(Wrong::OneLess), Just(Wrong::OneMore), Just(Wrong::Other)];
    prop_oneof![
        12 => arrival(),
        1 => any::<usize>().prop_map(ArriveTwice),
        4 => any::<usize>().prop_map(Cancel),
        40 => Just(StepReturns),
        2 => (0..3u64, 0..3u64).prop_map(|(epochs_ago, steps)| StaleOutcome { epochs_ago, steps }),
        1 => wrong.prop_map(WrongOutcome),
        3 => (0..12u32, 0..12u32).prop_map(|(full, window)| FormGroup { full, window }),
        10 => Just(MasksArrive),
        1 => any::<usize>().prop_map(Try),
        1 => Just(TryNobody),
        1 => (0..40u64).prop_map(TimePasses),
        1 => Just(LoseGroup),
        1 => Just(PastGroup),
        40 => Just(Poll),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    let speculation = (1..5usize, 1..3usize, 0..2usize).prop_map(|(drafts_max, ngram_min, more)| {
        Speculation { drafts_max, ngram_min, ngram_max: ngram_min + more }
    });
    let speculation = prop_oneof![2 => Just(None), 1 => speculation.prop_map(Some)];
    let sizes = (1..6usize, 0..40usize, 1..8usize, 2..120usize, 1..40usize);
    (sizes, 1..=STEPS_AHEAD_MAX, any::<bool>(), speculation).prop_map(
        |(
            (sequences_max, rows, waiting_max, context_max, window_tokens),
            steps,
            prefix_cache,
            speculation,
        )| {
            Settings {
                tokens_per_step_max: sequences_max + rows,
                sequences_max,
                waiting_max,
                context_max,
                window_tokens,
                steps_in_flight_max: steps,
                prefix_cache,
                speculation,
            }
        },
    )
}

impl World {
    fn happen(&mut self, happening: &Happening) {
        match *happening {
            Happening::Arrive {
                prompt_tokens,
                family,
                tokens_max,
                stops,
                guided,
                client,
                priority,
                millis,
            } => {
                let id = self.clients.len() as u64 + 1;
                let begins = request(1000 + family, prompt_tokens * 2 / 3, 0).prompt;
                let ends = request(id, prompt_tokens - begins.len(), 0).prompt;
                self.arrive(Request {
                    prompt: [begins, ends].concat(),
                    stop_tokens: if stops { vec![3, 7] } else { vec![] },
                    guided,
                    client: ClientId(client),
                    priority,
                    deadline: millis.map(|millis| self.now() + Duration::from_millis(millis)),
                    ..request(id, 0, tokens_max)
                });
            }
            Happening::ArriveTwice(pick) => {
                self.settle_actions();
                if let Some(id) = self.pick_live(pick) {
                    self.tell(Event::Arrived(request(id, 3, 3)));
                }
            }
            Happening::Cancel(pick) => {
                // Also of one that has ended: the client did not know yet.
                let id = pick % (self.clients.len() + 1);
                self.cancel(id as u64 + 1);
            }
            Happening::StepReturns => {
                self.step_returns();
            }
            Happening::StaleOutcome { epochs_ago, steps } => self.stale_outcome(epochs_ago, steps),
            Happening::WrongOutcome(wrong) => self.wrong_outcome(wrong),
            Happening::FormGroup { full, window } => self.form_group_of(KvBlocks { full, window }),
            Happening::MasksArrive => _ = self.masks_arrive(),
            Happening::Try(pick) => {
                let (alone, pick) = (pick % 2 == 1, pick / 2);
                let sequence = SequenceId((pick % (self.clients.len() + 1)) as u64 + 1);
                self.put_on_trial(Some(Trial { sequence, alone }));
            }
            Happening::TryNobody => self.put_on_trial(None),
            Happening::TimePasses(millis) => self.time_passes(millis),
            Happening::LoseGroup => self.lose_group(),
            Happening::PastGroup => {
                let past = Epoch(self.epoch().0.saturating_sub(1));
                self.tell(Event::GroupLost { epoch: past });
                self.tell(Event::GroupFormed { epoch: past, kv_blocks: KvBlocks::plain(1), stages: 1 });
            }
            Happening::Poll => self.settle_actions(),
        }
    }

    fn pick_live(&self, pick: usize) -> Option<u64> {
        let live: Vec<u64> =
            self.clients.iter().filter(|(_, client)| client.end.is_none()).map(|(id, _)| id.0).collect();
        live.get(pick % live.len().max(1)).copied()
    }

    fn stale_outcome(&mut self, epochs_ago: u64, steps: u64) {
        let Some((plan, outcome)) = self.in_flight.front().cloned() else {
            return;
        };
        if (epochs_ago, steps) != (0, 0) {
            let epoch = Epoch(plan.epoch.0.wrapping_sub(epochs_ago));
            let step = flotilla_shared::StepId(plan.step.0.wrapping_sub(steps));
            self.tell(Event::Stepped(StepOutcome { epoch, step, ..outcome }));
        }
    }

    fn wrong_outcome(&mut self, wrong: Wrong) {
        let Some((_, mut outcome)) = self.in_flight.front().cloned() else {
            return;
        };
        match (wrong, outcome.sampled.last_mut()) {
            (Wrong::Other, Some(sampled)) => sampled.sequence = SequenceId(999),
            (Wrong::OneLess, Some(sampled)) => {
                let last = sampled.sequence;
                outcome.sampled.retain(|sampled| sampled.sequence != last);
            }
            // Of a sequence that has guesses, one token more would be plausible.
            (_, _) => outcome.sampled.push(Sampled { sequence: SequenceId(999), token: 0, logprobs: None }),
        }
        let faults = self.faults.len();
        self.tell(Event::Stepped(outcome));
        self.settle_actions();
        assert_eq!(self.faults.len(), faults + 1, "a wrong outcome was believed");
    }

    /// A good group at last, and everybody must come to an end.
    fn conclude(&mut self) {
        self.settle_actions();
        if self.workers.is_none() {
            self.form_group(10);
        }
        self.run_to_end();
        for (id, client) in &self.clients {
            let complete = match client.end.unwrap() {
                End::Finished(FinishReason::Cancelled | FinishReason::Deadline, _) | End::Rejected => true,
                // The world has checked that the pool was the reason, where it was.
                End::Finished(_, _) => {
                    client.is_complete() || client.request.prompt.len() + client.emitted.len() >= 16
                }
            };
            assert!(complete, "{id} ended early");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_life_comes_to_its_end(
        settings in settings(),
        kv_blocks in 1..12usize,
        stages in 1..4usize,
        happenings in prop::collection::vec(happening(), 1..150),
    ) {
        let mut world = World::of_stages(settings, stages);
        world.form_group(kv_blocks);
        for happening in &happenings {
            world.happen(happening);
        }
        world.conclude();
    }
}
