//! A sequence that goes on in another scheduler keeps its tokens, its deadline and its place, and is no credit to its client.

use flotilla_scheduler::{Action, ClientId, Event, FinishReason, Request, Scheduler, Settings};
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepOutcome, StepPlan};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn serving(epoch: u64, at: Duration) -> Scheduler {
    let mut scheduler = Scheduler::new(Settings::default()).unwrap();
    let formed = Event::GroupFormed { epoch: Epoch(epoch), kv_blocks: KvBlocks::plain(100), stages: 1 };
    scheduler.handle(at, formed);
    scheduler
}

fn step(scheduler: &mut Scheduler) -> StepPlan {
    match scheduler.poll() {
        Some(Action::Step(plan)) => plan,
        other => panic!("no step: {other:?}"),
    }
}

/// Answers the step with this token for every sequence that samples.
fn answer(scheduler: &mut Scheduler, now: Duration, plan: &StepPlan, token: u32) {
    let sampled = plan.work.iter().filter(|work| work.sample);
    let sampled = sampled.map(|work| Sampled { sequence: work.sequence, token, logprobs: None }).collect();
    let outcome = StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..StepOutcome::default() };
    scheduler.handle(now, Event::Stepped(outcome));
}

#[test]
fn tokens_and_deadline_go_along() {
    let (mut here, mut there) = (serving(1, Duration::ZERO), serving(2, Duration::ZERO));
    let sequence = SequenceId(7);
    let deadline = Some(10 * SECOND);
    let request = Request { sequence, prompt: vec![1, 2, 3], tokens_max: 5, deadline, ..Request::default() };
    here.handle(Duration::ZERO, Event::Arrived(request));
    let plan = step(&mut here);
    answer(&mut here, SECOND, &plan, 4);
    assert!(matches!(here.poll(), Some(Action::Emit { token: 4, .. })));
    here.handle(2 * SECOND, Event::GroupLost { epoch: Epoch(1) });
    // Nothing happens here for a while: the time that it leaves is told.
    let traveller = here.depart(4 * SECOND, sequence).expect("it waits");
    assert!(here.depart(4 * SECOND, sequence).is_none());
    assert_eq!((here.poll(), here.load().sequences_waiting), (None, 0));

    // The other scheduler began at another time.
    there.adopt(100 * SECOND, traveller);
    let plan = step(&mut there);
    assert_eq!(plan.work[0].tokens, [1, 2, 3, 4]);
    answer(&mut there, 101 * SECOND, &plan, 5);
    match there.poll() {
        Some(Action::Emit { sequence: SequenceId(7), token: 5, .. }) => {}
        other => panic!("{other:?}"),
    }
    // Six of its ten seconds were left.
    assert_eq!(there.wakes_at(), Some(106 * SECOND));
    there.handle(106 * SECOND, Event::Tick);
    let ended = std::iter::from_fn(|| there.poll()).find_map(|action| match action {
        Action::Finish { reason, usage, .. } => Some((reason, usage.prompt_tokens, usage.completion_tokens)),
        _ => None,
    });
    assert_eq!(ended, Some((FinishReason::Deadline, 3, 2)));
}

#[test]
fn a_client_that_comes_with_a_sequence_has_had_as_much_as_the_others() {
    let (mut here, mut there) = (serving(1, Duration::ZERO), serving(2, Duration::ZERO));
    let of = |id: u64, client: u64| Request {
        sequence: SequenceId(id),
        prompt: vec![id as u32; 40],
        tokens_max: 1,
        client: ClientId(client),
        ..Request::default()
    };
    here.handle(Duration::ZERO, Event::Arrived(of(1, 1)));
    here.handle(Duration::ZERO, Event::GroupLost { epoch: Epoch(1) });
    // The others have been served, and one of them is.
    there.handle(Duration::ZERO, Event::Arrived(of(2, 2)));
    let plan = step(&mut there);
    there.adopt(SECOND, here.depart(SECOND, SequenceId(1)).expect("it waits"));
    there.handle(SECOND, Event::GroupLost { epoch: Epoch(2) });
    drop(plan);
    // Of both clients one more waits; who came with a sequence does not go first for that.
    there.handle(SECOND, Event::Arrived(of(3, 2)));
    there.handle(SECOND, Event::Arrived(of(4, 1)));
    let formed = Event::GroupFormed { epoch: Epoch(3), kv_blocks: KvBlocks::plain(100), stages: 1 };
    there.handle(SECOND, formed);
    let order: Vec<u64> = step(&mut there).work.iter().map(|work| work.sequence.0).collect();
    assert_eq!(order, [2, 1, 3, 4]);
}

/// By priority; what ran goes before its equals, and what only waited waits as its client's others do.
#[test]
fn who_never_ran_waits_its_turn_in_another_scheduler_too() {
    let (mut here, mut there) = (serving(1, Duration::ZERO), serving(2, Duration::ZERO));
    let of = |id: u64, priority: i32| Request {
        sequence: SequenceId(id),
        prompt: vec![1; 40],
        tokens_max: 2,
        priority,
        ..Request::default()
    };
    here.handle(Duration::ZERO, Event::Arrived(of(1, 10)));
    let plan = step(&mut here);
    (2..=3).for_each(|id| here.handle(Duration::ZERO, Event::Arrived(of(id, 10))));
    here.handle(Duration::ZERO, Event::GroupLost { epoch: plan.epoch });
    there.handle(Duration::ZERO, Event::GroupLost { epoch: Epoch(2) });
    there.handle(Duration::ZERO, Event::Arrived(of(4, 10)));
    there.handle(Duration::ZERO, Event::Arrived(of(5, 0)));
    for id in 1..=3 {
        let traveller = here.depart(SECOND, SequenceId(id)).expect("it waits");
        there.adopt(SECOND, traveller);
    }
    let formed = Event::GroupFormed { epoch: Epoch(3), kv_blocks: KvBlocks::plain(100), stages: 1 };
    there.handle(SECOND, formed);
    let order: Vec<u64> = step(&mut there).work.iter().map(|work| work.sequence.0).collect();
    assert_eq!(order, [5, 1, 4, 2, 3], "1 ran");
}

/// They were taken in once already.
#[test]
fn a_full_queue_takes_in_who_comes_from_elsewhere() {
    let settings = Settings { waiting_max: 2, ..Settings::default() };
    let mut all = [(); 2].map(|()| Scheduler::new(settings.clone()).unwrap());
    for (at, scheduler) in (0..).zip(&mut all) {
        for id in 1..=2 {
            let sequence = SequenceId(10 * at + id);
            let request = Request { sequence, prompt: vec![1; 4], tokens_max: 2, ..Request::default() };
            scheduler.handle(Duration::ZERO, Event::Arrived(request));
        }
    }
    let [mut here, mut there] = all;
    for id in 1..=2 {
        there.adopt(SECOND, here.depart(SECOND, SequenceId(id)).expect("it waits"));
    }
    assert_eq!(there.load().sequences_waiting, 4);
    let formed = Event::GroupFormed { epoch: Epoch(1), kv_blocks: KvBlocks::plain(100), stages: 1 };
    there.handle(SECOND, formed);
    assert_eq!(step(&mut there).work.len(), 4);
}
