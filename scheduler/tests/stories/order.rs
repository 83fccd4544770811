//! In which order those who wait come: by priority, among equals what ran before, then what came first.

use crate::world::{World, request};
use crate::{PLENTY, beginning_like, small};
use flotilla_scheduler::{ClientId, Event, Request, Settings};
use flotilla_shared::SequenceId;

/// Who was let in since the epoch began, in order.
fn let_in(world: &World) -> Vec<u64> {
    world.plans.iter().flat_map(|plan| &plan.admit).map(|admission| admission.sequence.0).collect()
}

/// Two run in five blocks, where there is no room for both; the second is of priority 10, and has made way.
fn after_a_preemption() -> World {
    let mut world = World::with_blocks(Settings { prefix_cache: false, ..small() }, 5);
    world.arrive(request(1, 5, 60));
    world.arrive(Request { priority: 10, ..request(2, 5, 60) });
    world.settle_actions();
    while world.scheduler.counters().preemptions == 0 {
        world.step();
    }
    assert_eq!(let_in(&world), [1, 2]);
    world
}

#[test]
fn what_was_preempted_does_not_hold_up_what_is_more_important() {
    let mut world = after_a_preemption();
    world.arrive(request(3, 40, 4)); // does not fit beside the first either
    world.arrive(Request { priority: 10, ..request(4, 3, 4) });
    world.run_to_end();
    assert_eq!(let_in(&world), [1, 2, 3, 2, 4]);
}

/// Else small ones of less importance would take, again and again, what it waits for.
#[test]
fn nor_does_it_pass_what_is_more_important_and_does_not_fit() {
    let mut world = World::with_blocks(Settings { prefix_cache: false, ..small() }, 6);
    world.arrive(request(1, 5, 60));
    world.arrive(Request { priority: 10, ..request(2, 33, 9) });
    world.settle_actions();
    world.arrive(request(3, 70, 4)); // wants five blocks
    while world.scheduler.counters().preemptions == 0 && world.reason(2).is_none() {
        world.step();
    }
    world.arrive(Request { priority: 10, ..request(4, 3, 4) });
    world.run_to_end();
    let order = let_in(&world);
    let at = |id| order.iter().rposition(|other| *other == id);
    assert!(at(3) < at(4), "{order:?}");
}

#[test]
fn a_lost_group_changes_nothing_in_the_order() {
    let mut world = World::with_blocks(Settings { sequences_max: 2, ..small() }, PLENTY);
    for (id, priority) in [(1, 10), (2, 5), (3, 10), (4, 5), (5, 0)] {
        world.arrive(Request { priority, ..request(id, 3, 6) });
    }
    world.settle_actions();
    world.lose_group();
    world.form_group(PLENTY);
    world.settle_actions();
    world.run_to_end();
    // 5 and 2 ran: of priority 5, 2 goes before 4.
    assert_eq!(let_in(&world), [5, 2, 4, 1, 3]);
}

/// Its beginning is there, but somebody more important has come.
#[test]
fn who_waited_for_a_beginning_stands_where_it_stood() {
    let mut world = World::with_blocks(Settings { sequences_max: 2, ..small() }, PLENTY);
    (1..=2).for_each(|id| world.arrive(beginning_like(9, 40, id, 0)));
    world.arrive(request(3, 2, 9));
    world.settle_actions();
    assert_eq!(let_in(&world), [1, 3], "the second waits for what the first computes");
    world.arrive(Request { priority: -1, ..request(4, 3, 3) });
    world.run_to_end();
    assert_eq!(let_in(&world), [1, 3, 4, 2]);
}

/// It ran before, so it goes before its equals, and not before all.
#[test]
fn a_late_mask_makes_nobody_more_important() {
    let mut world = World::with_blocks(Settings { sequences_max: 1, ..small() }, PLENTY);
    world.arrive(Request { guided: true, ..request(1, 2, 5) });
    world.settle_actions();
    world.step_returns();
    world.settle_actions();
    world.lose_group();
    (2..=3).for_each(|id| world.arrive(request(id, 3, 4)));
    world.form_group(PLENTY);
    world.settle_actions();
    assert_eq!(let_in(&world), [2], "its mask is still being made");
    world.arrive(Request { priority: -1, ..request(4, 3, 4) });
    let masks = std::mem::take(&mut world.masks_due);
    masks.into_iter().for_each(|sequence| world.tell(Event::Masked(sequence)));
    world.run_to_end();
    assert_eq!(let_in(&world), [2, 4, 1, 3]);
}

/// What is let in is on its client's account at once: else who had a row less than the others would fill all seats.
#[test]
fn seats_of_one_step_are_shared_too() {
    let mut world = World::with_blocks(Settings { tokens_per_step_max: 64, ..small() }, PLENTY);
    for (id, client) in [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)] {
        world.arrive(Request { client: ClientId(client), ..request(id, 4, 3) });
    }
    world.settle_actions();
    let first: Vec<SequenceId> = world.plans[0].work.iter().map(|work| work.sequence).collect();
    assert_eq!(first, [1, 5, 2, 6].map(SequenceId));
    world.run_to_end();
}

/// Though it came first.
#[test]
fn where_blocks_run_out_the_least_important_starts_over() {
    let mut world = World::with_blocks(small(), 5);
    world.arrive(Request { priority: 3, ..request(1, 5, 60) });
    world.settle_actions();
    world.arrive(request(2, 5, 60));
    world.run_to_end();
    let made_way: Vec<SequenceId> = world.plans.iter().flat_map(|plan| plan.release.clone()).collect();
    assert_eq!((world.scheduler.counters().preemptions, made_way[0]), (1, SequenceId(1)));
    assert!((1..=2).all(|id| world.client(id).is_complete()));
}

#[test]
fn a_long_prompt_holds_up_none_that_is_more_important() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(Request { priority: 3, ..request(1, 60, 2) });
    world.settle_actions();
    world.arrive(request(2, 70, 2));
    while world.client(2).emitted.is_empty() {
        world.step();
    }
    assert!(world.client(1).emitted.is_empty());
    world.run_to_end();
}

/// Nor does a short one; one that is as important passes it all the same.
#[test]
fn new_prompts_leave_the_rows_to_one_that_is_more_important() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 40, 2));
    world.settle_actions();
    world.arrive(Request { priority: 3, ..request(2, 4, 2) });
    world.arrive(request(3, 6, 2));
    while world.client(3).emitted.is_empty() {
        world.step();
    }
    assert!(world.client(1).emitted.is_empty());
    while world.client(1).emitted.is_empty() {
        world.step();
    }
    assert!(world.client(2).emitted.is_empty());
    world.run_to_end();
}
