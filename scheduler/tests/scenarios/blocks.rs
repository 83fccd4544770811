//! Blocks of the cache: who has them, and who makes room.

use crate::world::{World, request};
use crate::{PLENTY, small};
use flotilla_scheduler::{FinishReason, Rejection};
use flotilla_shared::SequenceId;

#[test]
fn a_table_grows_by_one_block_every_sixteen_tokens() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 1, 50));
    world.run_to_end();
    let blocks: Vec<usize> = world.plans.iter().map(|plan| plan.work[0].blocks.len()).collect();
    let grows: Vec<usize> = (0..blocks.len()).filter(|&step| blocks[step] > 0).collect();
    assert_eq!(grows, [0, 16, 32, 48]);
    assert!(blocks.iter().all(|&count| count <= 1));
}

#[test]
fn where_blocks_run_out_the_youngest_starts_over_and_repeats_nothing() {
    let mut world = World::with_blocks(small(), 5);
    for id in 1..=2 {
        world.arrive(request(id, 5, 60));
    }
    world.settle_actions();
    while world.plan().release.is_empty() {
        world.step();
    }
    // Each had two blocks; the fifth went to the first, and the second paid for its next.
    assert_eq!(world.plan().release, [SequenceId(2)]);
    let emitted = world.client(2).emitted.len();
    assert!(emitted > 20 && world.scheduler.counters().preemptions == 1);
    assert_eq!(world.scheduler.load().sequences_waiting, 1);
    while world.plan().admit.is_empty() {
        world.step();
    }
    assert_eq!(world.reason(1), Some(FinishReason::Length), "it was the older that ran on");
    assert_eq!(world.plan().work[0].position, 0);
    assert_eq!(world.client(2).emitted.len(), emitted);
    world.run_to_end();
    assert!(world.client(1).is_complete() && world.client(2).is_complete());
}

#[test]
fn a_preempted_sequence_comes_before_those_that_wait() {
    let mut world = World::with_blocks(small(), 5);
    for id in 1..=2 {
        world.arrive(request(id, 17, 60));
    }
    world.settle_actions();
    world.arrive(request(3, 1, 1)); // one block is free, but two may soon want it
    while world.plan().release.is_empty() {
        world.step();
    }
    while world.plan().admit.is_empty() {
        world.step();
    }
    assert_eq!(world.plan().admit[0].sequence, SequenceId(2));
    world.run_to_end();
}

#[test]
fn who_is_admitted_does_not_take_the_block_that_another_needs_next() {
    let mut world = World::with_blocks(small(), 3);
    world.arrive(request(1, 15, 5)); // soon needs a second block
    world.arrive(request(2, 20, 3)); // would take both that are free
    world.run_to_end();
    assert_eq!(world.scheduler.counters().preemptions, 0);
}

#[test]
fn a_pool_for_one_serves_many_in_turn() {
    let mut world = World::with_blocks(small(), 2);
    for id in 1..=4 {
        world.arrive(request(id, 12, 15));
    }
    world.run_to_end();
    assert!((1..=4).all(|id| world.client(id).is_complete()));
}

#[test]
fn the_whole_pool_is_the_longest_sequence() {
    let mut world = World::with_blocks(small(), 2);
    world.arrive(request(1, 31, 9));
    world.arrive(request(2, 32, 9));
    world.run_to_end();
    assert_eq!((world.reason(1), world.client(1).emitted.len()), (Some(FinishReason::Length), 1));
    assert_eq!(world.rejections, [(SequenceId(2), Rejection::PromptTooLong { tokens: 32, tokens_max: 31 })]);
}

#[test]
fn what_outgrew_a_smaller_group_ends_by_length() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 40, 9));
    world.arrive(request(2, 4, 3));
    world.settle_actions();
    world.form_group(2);
    world.run_to_end();
    assert_eq!(world.reason(1), Some(FinishReason::Length));
    assert!(world.client(2).is_complete());
}

#[test]
fn releases_wait_for_a_plan_with_work() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 4, 1));
    world.run_to_end();
    assert_eq!(world.plans.len(), 1, "no plan to release alone");
    world.arrive(request(2, 4, 1));
    world.settle_actions();
    assert_eq!(world.plan().release, [SequenceId(1)]);
    world.run_to_end();
}
