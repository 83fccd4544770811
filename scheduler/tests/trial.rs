//! A sequence on trial: nobody else is taken in until it has ended, or others are let in.

use flotilla_scheduler::{Action, Event, Request, Scheduler, Settings, Trial};
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepOutcome, StepPlan};
use std::time::Duration;

fn tell(scheduler: &mut Scheduler, event: Event) {
    scheduler.handle(Duration::ZERO, event);
}

fn on_trial_of(id: u64, alone: bool) -> Event {
    Event::OnTrial(Some(Trial { sequence: SequenceId(id), alone }))
}

/// Three that wait, then a group.
fn waiting(on_trial: u64) -> Scheduler {
    let mut scheduler = Scheduler::new(Settings::default()).unwrap();
    for id in 1..=3 {
        let (sequence, prompt) = (SequenceId(id), vec![id as u32; 5]);
        tell(
            &mut scheduler,
            Event::Arrived(Request { sequence, prompt, tokens_max: 9, ..Request::default() }),
        );
    }
    tell(&mut scheduler, on_trial_of(on_trial, false));
    let kv_blocks = KvBlocks::plain(100);
    tell(&mut scheduler, Event::GroupFormed { epoch: Epoch(1), kv_blocks, stages: 1 });
    scheduler
}

fn step(scheduler: &mut Scheduler) -> StepPlan {
    match scheduler.poll() {
        Some(Action::Step(plan)) => plan,
        other => panic!("no step: {other:?}"),
    }
}

fn working(plan: &StepPlan) -> Vec<u64> {
    plan.work.iter().map(|work| work.sequence.0).collect()
}

#[test]
fn it_runs_alone_until_others_are_let_in() {
    let mut scheduler = waiting(2);
    assert_eq!(working(&step(&mut scheduler)), [2]);
    // Whoever comes now waits as well.
    let request = Request { sequence: SequenceId(4), prompt: vec![8], tokens_max: 9, ..Request::default() };
    tell(&mut scheduler, Event::Arrived(request));
    assert_eq!(working(&step(&mut scheduler)), [2]);
    let load = scheduler.load();
    assert_eq!((load.sequences_running, load.sequences_waiting), (1, 3));
    tell(&mut scheduler, Event::OnTrial(None));
    let outcome = StepOutcome { epoch: Epoch(1), ..StepOutcome::default() };
    let sampled = Sampled { sequence: SequenceId(2), token: 7, logprobs: None };
    let outcome = StepOutcome { step: flotilla_shared::StepId(1), sampled: vec![sampled], ..outcome };
    tell(&mut scheduler, Event::Stepped(outcome));
    assert!(matches!(scheduler.poll(), Some(Action::Emit { .. })));
    assert_eq!(working(&step(&mut scheduler)), [2, 1, 3, 4]);
}

fn sampled(plan: &StepPlan) -> Event {
    let work = plan.work.iter().filter(|work| work.sample);
    let sampled = work.map(|work| Sampled { sequence: work.sequence, token: 7, logprobs: None }).collect();
    Event::Stepped(StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..StepOutcome::default() })
}

/// Those that run go on where they stood once it has ended, and lose no token.
#[test]
fn who_is_to_be_alone_waits_for_what_is_in_flight_and_no_longer() {
    let mut scheduler = waiting(9);
    let first = step(&mut scheduler);
    assert_eq!(working(&first), [1, 2, 3]);
    let request = Request { sequence: SequenceId(4), prompt: vec![8], tokens_max: 2, ..Request::default() };
    tell(&mut scheduler, Event::Arrived(request));
    tell(&mut scheduler, on_trial_of(4, true));
    assert_eq!(scheduler.poll(), None, "a step is in flight");
    tell(&mut scheduler, sampled(&first));
    let told: Vec<_> = std::iter::from_fn(|| match scheduler.poll() {
        Some(Action::Emit { sequence, .. }) => Some(sequence.0),
        Some(Action::Step(plan)) => {
            assert_eq!((working(&plan), plan.release.len()), (vec![4], 3));
            None
        }
        other => panic!("{other:?}"),
    })
    .collect();
    assert_eq!(told, [1, 2, 3]);
    let load = scheduler.load();
    assert_eq!((load.sequences_running, load.sequences_waiting), (1, 3));
    tell(&mut scheduler, Event::Cancelled(SequenceId(4)));
    assert!(matches!(scheduler.poll(), Some(Action::Finish { sequence: SequenceId(4), .. })));
    let next = step(&mut scheduler);
    let tokens: Vec<_> = next.work.iter().map(|work| (work.sequence.0, work.tokens.len())).collect();
    assert_eq!(tokens, [(1, 6), (2, 6), (3, 6)], "with the token that each had");
}

#[test]
fn when_it_ends_all_are_let_in() {
    let mut scheduler = waiting(3);
    tell(&mut scheduler, Event::Cancelled(SequenceId(3)));
    assert!(matches!(scheduler.poll(), Some(Action::Finish { sequence: SequenceId(3), .. })));
    assert_eq!(working(&step(&mut scheduler)), [1, 2]);
    let mut scheduler = waiting(1);
    tell(&mut scheduler, Event::GroupLost { epoch: Epoch(1) });
    assert!(scheduler.depart(Duration::ZERO, SequenceId(1)).is_some());
    tell(&mut scheduler, Event::GroupFormed { epoch: Epoch(2), kv_blocks: KvBlocks::plain(100), stages: 1 });
    assert_eq!(working(&step(&mut scheduler)), [2, 3]);
}

#[test]
fn a_trial_of_nobody_who_is_there_is_none() {
    let mut scheduler = waiting(9);
    assert_eq!(working(&step(&mut scheduler)), [1, 2, 3]);
}
