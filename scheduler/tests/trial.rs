//! A sequence on trial: nobody else is taken in until it has ended, or others are let in.

use flotilla_scheduler::{Action, Event, Request, Scheduler, Settings};
use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepOutcome, StepPlan};
use std::time::Duration;

fn tell(scheduler: &mut Scheduler, event: Event) {
    scheduler.handle(Duration::ZERO, event);
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
    tell(&mut scheduler, Event::OnTrial(Some(SequenceId(on_trial))));
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
    let sampled = flotilla_shared::step::Sampled { sequence: SequenceId(2), token: 7, logprobs: None };
    let outcome = StepOutcome { step: flotilla_shared::StepId(1), sampled: vec![sampled], ..outcome };
    tell(&mut scheduler, Event::Stepped(outcome));
    assert!(matches!(scheduler.poll(), Some(Action::Emit { .. })));
    assert_eq!(working(&step(&mut scheduler)), [2, 1, 3, 4]);
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
