//! Thousands of random lives: arrivals, cancels, groups that come, shrink, answer wrongly and go, tiny
//! pools, events handed in one by one or in bursts. The world checks every action as it comes; at the
//! end everybody must have had exactly one last word, with the tokens of an uninterrupted run.
//!
//! A failure prints the shortest life that still fails, and keeps its seed in
//! `tests/random.proptest-regressions`, which the next run replays first. Commit that file only with
//! the fix of a real bug.

mod world;

use flotilla_scheduler::{Event, FinishReason, Settings};
use flotilla_shared::KvBlocks;
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, SequenceId, StepOutcome};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use world::{End, World, request};

#[derive(Clone, Debug)]
enum Happening {
    Arrive {
        prompt_tokens: usize,
        tokens_max: usize,
        stops: bool,
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
        kv_blocks: usize,
    },
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

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    let wrong = prop_oneof![Just(Wrong::OneLess), Just(Wrong::OneMore), Just(Wrong::Other)];
    prop_oneof![
        12 => (0..70usize, 0..50usize, any::<bool>())
            .prop_map(|(prompt_tokens, tokens_max, stops)| Arrive { prompt_tokens, tokens_max, stops }),
        1 => any::<usize>().prop_map(ArriveTwice),
        4 => any::<usize>().prop_map(Cancel),
        40 => Just(StepReturns),
        2 => (0..3u64, 0..3u64).prop_map(|(epochs_ago, steps)| StaleOutcome { epochs_ago, steps }),
        1 => wrong.prop_map(WrongOutcome),
        3 => (0..12usize).prop_map(|kv_blocks| FormGroup { kv_blocks }),
        1 => Just(LoseGroup),
        1 => Just(PastGroup),
        40 => Just(Poll),
    ]
}

fn settings() -> impl Strategy<Value = Settings> {
    (1..6usize, 0..40usize, 1..8usize, 2..120usize).prop_map(
        |(sequences_max, rows, waiting_max, context_max)| Settings {
            tokens_per_step_max: sequences_max + rows,
            sequences_max,
            waiting_max,
            context_max,
        },
    )
}

impl World {
    fn happen(&mut self, happening: &Happening) {
        match *happening {
            Happening::Arrive { prompt_tokens, tokens_max, stops } => {
                let mut request = request(self.clients.len() as u64 + 1, prompt_tokens, tokens_max);
                request.stop_tokens = if stops { vec![3, 7] } else { vec![] };
                self.arrive(request);
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
            Happening::FormGroup { kv_blocks } => self.form_group(kv_blocks),
            Happening::LoseGroup => self.lose_group(),
            Happening::PastGroup => {
                let past = Epoch(self.epoch().0.saturating_sub(1));
                self.tell(Event::GroupLost { epoch: past });
                self.tell(Event::GroupFormed { epoch: past, kv_blocks: KvBlocks::plain(1) });
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
        let Some((plan, outcome)) = self.in_flight.clone() else {
            return;
        };
        if (epochs_ago, steps) != (0, 0) {
            let epoch = Epoch(plan.epoch.0.wrapping_sub(epochs_ago));
            let step = flotilla_shared::StepId(plan.step.0.wrapping_sub(steps));
            self.tell(Event::Stepped(StepOutcome { epoch, step, ..outcome }));
        }
    }

    fn wrong_outcome(&mut self, wrong: Wrong) {
        let Some((_, mut outcome)) = self.in_flight.clone() else {
            return;
        };
        match (wrong, outcome.sampled.last_mut()) {
            (Wrong::Other, Some(sampled)) => sampled.sequence = SequenceId(999),
            (Wrong::OneLess, Some(_)) => _ = outcome.sampled.pop(),
            (_, _) => outcome.sampled.push(Sampled { sequence: SequenceId(1), token: 0, logprobs: None }),
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
                End::Finished(FinishReason::Cancelled, _) | End::Rejected => true,
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
        happenings in prop::collection::vec(happening(), 1..150),
    ) {
        let mut world = World::with_blocks(settings, kv_blocks);
        for happening in &happenings {
            world.happen(happening);
        }
        world.conclude();
    }
}
