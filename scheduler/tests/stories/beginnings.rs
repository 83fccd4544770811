//! Shared beginnings of prompts, and windows.

use crate::world::{World, request};
use crate::{PLENTY, beginning_like, cached, small};
use flotilla_scheduler::{Counters, Request, Settings};
use flotilla_shared::KvBlocks;
use flotilla_shared::step::BLOCK_TOKENS;

#[test]
fn a_prompt_that_begins_alike_computes_only_the_rest() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 70, 3));
    world.run_to_end();
    world.arrive(beginning_like(1, 66, 2, 9));
    world.settle_actions();
    let work = &world.in_flight[0].0.work[0];
    assert_eq!((work.position, work.blocks.len(), work.window_gone), (64, 5, 2));
    world.run_to_end();
    assert_eq!((cached(&world, 1), cached(&world, 2)), (0, 64));
}

#[test]
fn one_token_at_least_is_computed() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 64, 3));
    world.run_to_end();
    world.arrive(beginning_like(1, 64, 2, 0));
    world.run_to_end();
    assert_eq!(cached(&world, 2), 48);
}

#[test]
fn the_next_turn_of_a_chat_finds_the_last_one() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 30, 40));
    world.run_to_end();
    let mut next = request(2, 10, 4);
    let turn = [&world.client(1).request.prompt[..], &world.client(1).emitted[..], &next.prompt[..]];
    next.prompt = turn.concat();
    world.arrive(next);
    world.run_to_end();
    assert_eq!(cached(&world, 2), 64);
}

#[test]
fn choices_of_one_prompt_compute_it_once() {
    let mut world = World::with_blocks(small(), PLENTY);
    (1..=3).for_each(|id| world.arrive(beginning_like(9, 40, id, 0)));
    world.run_to_end();
    let rows: usize = world.plans.iter().map(|plan| plan.token_count()).sum();
    let decodes = 3 * 3;
    assert_eq!(rows, 40 + 8 + 8 + decodes, "the others computed what fills no block");
}

#[test]
fn a_second_copy_of_a_long_prompt_holds_up_nobody() {
    let mut world = World::with_blocks(small(), PLENTY);
    (1..=2).for_each(|id| world.arrive(beginning_like(9, 200, id, 0)));
    world.settle_actions();
    world.arrive(request(3, 2, 2));
    world.step();
    world.step();
    assert!(world.rows().iter().any(|(id, _)| *id == 3), "{:?}", world.rows());
    world.run_to_end();
    assert_eq!(cached(&world, 2), 192);
}

/// Those that wait for the same beginning stand together, and are passed over as one.
#[test]
fn many_copies_of_a_long_prompt_hold_up_nobody() {
    let mut world = World::with_blocks(Settings { waiting_max: 100, ..small() }, PLENTY);
    (1..=66).for_each(|id| world.arrive(beginning_like(99, 200, id, 0)));
    world.settle_actions();
    world.arrive(request(67, 2, 2));
    let starts = |world: &mut World| {
        world.step();
        world.rows().iter().any(|(id, _)| *id == 67)
    };
    assert!((0..3).any(|_| starts(&mut world)), "{:?}", world.rows());
    world.run_to_end();
    assert_eq!(cached(&world, 66), 192);
}

/// X Y, and then Z: Z Y does not find Y, which stands behind another beginning.
#[test]
fn a_block_is_found_behind_its_own_beginning_only() {
    let mut world = World::with_blocks(small(), PLENTY);
    let block = |id| request(id, BLOCK_TOKENS, 0).prompt;
    let prompts = [[block(21), block(22)].concat(), block(23), [block(23), block(22), block(24)].concat()];
    for (id, prompt) in (1..).zip(prompts) {
        world.arrive(Request { prompt: [prompt, vec![1]].concat(), ..request(id, 0, 2) });
        world.run_to_end();
    }
    assert_eq!([cached(&world, 1), cached(&world, 2), cached(&world, 3)], [0, 0, 16]);
}

#[test]
fn salts_keep_beginnings_apart() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 70, 3));
    world.run_to_end();
    world.arrive(Request { salt: 7, ..beginning_like(1, 70, 2, 0) });
    world.run_to_end();
    assert_eq!(cached(&world, 2), 0);
}

#[test]
fn the_longest_unused_beginning_goes_first() {
    let mut world = World::with_blocks(small(), 12);
    (1..=2).for_each(|id| {
        world.arrive(request(id, 49, 1));
        world.run_to_end();
    });
    world.arrive(beginning_like(1, 49, 3, 0)); // 1 is used again
    world.run_to_end();
    world.arrive(request(4, 100, 1)); // wants seven of twelve, six of which have no name
    world.run_to_end();
    world.arrive(beginning_like(1, 49, 5, 0));
    world.run_to_end();
    world.arrive(beginning_like(2, 49, 6, 0));
    world.run_to_end();
    assert_eq!(
        [cached(&world, 3), cached(&world, 5), cached(&world, 6)],
        [48, 48, 32],
        "and of that, its end"
    );
}

/// Its window was lost, and it was computed again: that was the last use of it, and what was there before is not kept in
/// its place.
#[test]
fn what_is_computed_again_is_what_was_used_last() {
    let mut world = World::new(small());
    world.form_group_of(KvBlocks { full: 14, window: 8 });
    for (id, tokens) in [(1, 49), (2, 120)] {
        world.arrive(request(id, tokens, 1));
        world.run_to_end();
    }
    world.arrive(beginning_like(1, 49, 3, 0));
    world.run_to_end();
    assert_eq!(cached(&world, 3), 0, "the second took the blocks of its window");
    world.arrive(request(4, 65, 1)); // takes a block of what was used longest ago
    world.run_to_end();
    world.arrive(beginning_like(1, 49, 5, 0));
    world.run_to_end();
    assert_eq!(cached(&world, 5), 48);
}

#[test]
fn a_preempted_sequence_finds_most_of_what_it_had() {
    let mut world = World::with_blocks(small(), 14);
    world.arrive(request(1, 40, 90));
    world.arrive(request(2, 40, 90));
    let mut found = 0;
    world.settle_actions();
    while world.step_returns() {
        world.settle_actions();
        let admitted = world.in_flight.iter().flat_map(|step| &step.0.admit);
        found = admitted.map(|admission| admission.cached).fold(found, u32::max);
    }
    assert!(found >= 32, "{found} tokens");
    assert!(world.scheduler.counters().preemptions > 0);
    world.run_to_end();
    assert!(world.client(1).is_complete() && world.client(2).is_complete());
    let Counters { prefix_queried_tokens, prefix_cached_tokens, .. } = world.scheduler.counters();
    assert_eq!(
        (prefix_queried_tokens, prefix_cached_tokens),
        (80, 0),
        "its own is no prompt that others share"
    );
}

#[test]
fn window_layers_hold_the_window_and_no_more() {
    let mut world = World::new(small());
    world.form_group_of(KvBlocks { full: 25, window: 4 });
    world.arrive(request(1, 200, 190));
    world.run_to_end();
    assert!(world.client(1).is_complete());
}

#[test]
fn a_prompt_takes_smaller_chunks_where_window_blocks_are_few() {
    let mut world = World::new(Settings { tokens_per_step_max: 100, ..small() });
    world.form_group_of(KvBlocks { full: 25, window: 4 });
    world.arrive(request(1, 200, 4));
    world.settle_actions();
    let rows: Vec<usize> = world.plans.iter().map(|plan| plan.token_count()).collect();
    assert_eq!(rows, [64, 32], "after 64 it still sees two of the four blocks");
    world.run_to_end();
    assert!(world.client(1).is_complete());
}

#[test]
fn full_contexts_fit_in_half_the_memory() {
    let settings = Settings::default();
    let context = settings.context_max;
    let blocks = KvBlocks::for_tokens(4 * context, 128, settings.sequences_max, settings.tokens_per_step_max);
    let plain = 4 * context / BLOCK_TOKENS;
    // Half of the layers are of each kind, so a block of either takes half of a plain one.
    let share = f64::from(blocks.full + blocks.window) / (2 * plain) as f64;
    assert!(share < 0.55, "{share} of the memory of a plain cache");
    let mut world = World::new(Settings { tokens_per_step_max: 8192, ..settings });
    world.form_group_of(blocks);
    (1..=4).for_each(|id| world.arrive(request(id, context - 40, 30)));
    world.run_to_end();
    assert!((1..=4).all(|id| world.client(id).is_complete()));
    assert_eq!(world.scheduler.counters().preemptions, 0, "four full contexts ran together");
}
