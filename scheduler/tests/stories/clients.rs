//! Clients that share a group, priorities and deadlines.

use crate::world::{End, World, request};
use crate::{PLENTY, small};
use flotilla_scheduler::{ClientId, FinishReason, Request, Settings};
use flotilla_shared::SequenceId;
use std::time::Duration;

#[test]
fn short_prompts_pass_a_long_one() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 60, 2));
    world.settle_actions();
    world.arrive(request(2, 3, 2));
    world.step();
    assert_eq!(world.rows(), [(1, 5), (2, 3)]);
    world.run_to_end();
}

#[test]
fn a_client_with_many_requests_does_not_hold_up_one_with_few() {
    let mut world = World::with_blocks(Settings { sequences_max: 1, ..small() }, PLENTY);
    for id in 1..=4 {
        world.arrive(Request { client: ClientId(1), ..request(id, 8, 2) });
    }
    world.settle_actions();
    world.arrive(Request { client: ClientId(2), ..request(5, 8, 2) });
    world.run_to_end();
    let first_rows = |id| {
        let has =
            |plan: &flotilla_shared::StepPlan| plan.work.iter().any(|work| work.sequence == SequenceId(id));
        world.plans.iter().position(has).unwrap()
    };
    assert!(first_rows(2) < first_rows(5) && first_rows(5) < first_rows(3), "in turns");
}

#[test]
fn no_client_with_a_key_fills_the_queue() {
    let settings = Settings { sequences_max: 1, waiting_max: 8, ..small() };
    let mut world = World::with_blocks(settings, PLENTY);
    for id in 1..=20 {
        world.arrive(Request { client: ClientId(1), ..request(id, 4, 2) });
    }
    world.arrive(Request { client: ClientId(2), ..request(21, 4, 2) });
    world.settle_actions();
    assert!(world.rejections.iter().all(|(id, _)| id.0 <= 20) && !world.rejections.is_empty());
    world.run_to_end();
    assert!(world.client(21).is_complete());
}

#[test]
fn the_lowest_priority_pays_for_blocks() {
    let mut world = World::with_blocks(small(), 7);
    world.arrive(request(1, 5, 60));
    world.arrive(Request { priority: 3, ..request(2, 5, 60) });
    world.arrive(request(3, 5, 60));
    world.settle_actions();
    while world.scheduler.counters().preemptions == 0 {
        world.step();
    }
    world.settle_actions();
    assert!(world.plans.iter().any(|plan| plan.release == [SequenceId(2)]));
    world.run_to_end();
}

#[test]
fn a_deadline_ends_what_runs_and_what_waits() {
    let mut world = World::with_blocks(Settings { sequences_max: 1, ..small() }, PLENTY);
    let deadline = Some(Duration::from_millis(100));
    world.arrive(Request { deadline, ..request(1, 4, 300) });
    world.arrive(Request { deadline, ..request(2, 4, 300) });
    world.arrive(request(3, 4, 3));
    world.settle_actions();
    assert_eq!(world.scheduler.wakes_at(), deadline);
    world.step();
    world.time_passes(100);
    world.settle_actions();
    assert_eq!([world.reason(1), world.reason(2)], [Some(FinishReason::Deadline); 2]);
    assert_eq!(world.scheduler.wakes_at(), None);
    world.run_to_end();
    assert!(world.client(3).is_complete());
}

#[test]
fn what_a_sequence_waited_for_its_first_seat_is_told() {
    let mut world = World::with_blocks(Settings { sequences_max: 1, ..small() }, PLENTY);
    world.arrive(request(1, 4, 3));
    world.settle_actions();
    world.arrive(request(2, 4, 3));
    let arrived = world.now();
    let deadline = Some(arrived + Duration::from_millis(50));
    world.arrive(Request { deadline, ..request(3, 4, 3) });
    world.time_passes(100);
    world.settle_actions();
    let waited = world.now() - arrived;
    world.run_to_end();
    let queued = |id: u64| match world.client(id).end {
        Some(End::Finished(_, usage)) => usage.queued,
        end => panic!("{end:?}"),
    };
    assert_eq!(queued(1), Duration::ZERO, "there was room at once");
    assert!(queued(2) > waited, "the first ran all that time");
    assert_eq!(queued(3), waited - Duration::from_millis(1), "it never ran; it came 1 ms later");
}

/// What is computed again, for nobody had asked that its group be lost, is not on its client's account.
#[test]
fn who_starts_over_does_not_pay_twice() {
    let settings = Settings { sequences_max: 1, waiting_max: 20, prefix_cache: false, ..small() };
    let mut world = World::with_blocks(settings, PLENTY);
    let of = |client, id, tokens| Request { client: ClientId(client), ..request(id, tokens, 6) };
    (1..=2).for_each(|client| world.arrive(of(client, client, 60)));
    for turn in 1..=4 {
        (1..=2).for_each(|client| world.arrive(of(client, 10 * turn + client, 4)));
    }
    world.settle_actions();
    while world.client(1).emitted.is_empty() {
        world.step();
    }
    world.lose_group();
    world.form_group(PLENTY);
    world.run_to_end();
    let mut order: Vec<u64> =
        world.plans.iter().flat_map(|plan| &plan.work).map(|it| it.sequence.0).collect();
    order.dedup();
    assert_eq!(order, [1, 2, 11, 12, 21, 22, 31, 32, 41, 42], "in turns");
}
