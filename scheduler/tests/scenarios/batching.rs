//! What shares a step.

use crate::world::{World, request};
use crate::{PLENTY, small};
use flotilla_scheduler::Settings;
use flotilla_shared::SequenceId;

#[test]
fn a_long_prompt_takes_several_steps_and_samples_in_the_last() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 20, 3));
    world.settle_actions();
    let mut chunks = vec![];
    for _ in 0..3 {
        let work = world.plan().work[0].clone();
        chunks.push((work.position, work.tokens.len(), work.blocks.len(), work.sample));
        world.step();
    }
    assert_eq!(chunks, [(0, 8, 2, false), (8, 8, 0, false), (16, 4, 0, true)]);
    assert_eq!(world.client(1).emitted.len(), 1);
    world.run_to_end();
}

#[test]
fn what_arrives_together_shares_a_step() {
    let mut world = World::with_blocks(small(), PLENTY);
    for id in 1..=3 {
        world.arrive(request(id, 2, 4));
    }
    world.settle_actions();
    assert_eq!(world.rows(), [(1, 2), (2, 2), (3, 2)]);
    world.run_to_end();
    assert_eq!(world.plans.len(), 4);
}

#[test]
fn a_decode_runs_beside_a_long_prompt_in_every_step() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 3, 10));
    world.step();
    world.arrive(request(2, 30, 2));
    world.step();
    for _ in 0..4 {
        assert_eq!(world.rows(), [(1, 1), (2, 7)]);
        world.step();
    }
    assert_eq!(world.rows(), [(1, 1), (2, 2)]);
    world.run_to_end();
}

#[test]
fn prompts_share_the_rest_of_a_step_in_order_of_arrival() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 6, 2));
    world.arrive(request(2, 6, 2));
    world.arrive(request(3, 6, 2));
    world.settle_actions();
    assert_eq!(world.rows(), [(1, 6), (2, 2)]);
    world.step();
    assert_eq!(world.rows(), [(1, 1), (2, 4), (3, 3)]);
    world.run_to_end();
}

#[test]
fn even_when_all_others_decode_the_prompt_has_a_row() {
    let mut world = World::with_blocks(Settings { tokens_per_step_max: 4, ..small() }, PLENTY);
    for id in 1..=3 {
        world.arrive(request(id, 1, 30));
    }
    world.step();
    world.arrive(request(4, 5, 1));
    world.step();
    for _ in 0..5 {
        assert_eq!(world.rows(), [(1, 1), (2, 1), (3, 1), (4, 1)]);
        world.step();
    }
    assert!(world.client(4).is_complete());
    world.run_to_end();
}

#[test]
fn nobody_overtakes_the_head_of_the_line() {
    let mut world = World::with_blocks(small(), 4);
    world.arrive(request(1, 20, 20));
    world.step();
    world.arrive(request(2, 40, 2)); // three blocks, where two are free
    world.arrive(request(3, 1, 2)); // would fit
    while world.reason(1).is_none() {
        assert!(world.plan().admit.iter().all(|admission| admission.sequence == SequenceId(1)));
        world.step();
    }
    assert_eq!(world.plan().admit[0].sequence, SequenceId(2));
    world.run_to_end();
}
