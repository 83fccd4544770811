//! What came after the plain line, one story each: stages, one step ahead, shared beginnings, windows, clients that
//! share a group, masks, guesses and deadlines. The world checks in every story that no token is lost,
//! repeated or computed from another's blocks.

mod world;

use flotilla_scheduler::{ClientId, FinishReason, Request, Settings, Speculation};
use flotilla_shared::step::BLOCK_TOKENS;
use flotilla_shared::{KvBlocks, SequenceId};
use std::time::Duration;
use world::{End, World, request};

fn small() -> Settings {
    Settings {
        tokens_per_step_max: 8,
        sequences_max: 4,
        waiting_max: 8,
        context_max: 400,
        window_tokens: 32,
        ..Settings::default()
    }
}

const PLENTY: usize = 100;

/// The request of another id with the prompt of `id`, and `more` tokens of its own.
fn beginning_like(id: u64, prompt_tokens: usize, other: u64, more: usize) -> Request {
    let mut prompt = request(id, prompt_tokens, 0).prompt;
    prompt.extend(request(other, more, 0).prompt);
    Request { prompt, ..request(other, 0, 4) }
}

fn cached(world: &World, id: u64) -> usize {
    match world.client(id).end {
        Some(End::Finished(_, usage)) => usage.cached_tokens,
        _ => panic!("{id} has not finished"),
    }
}

// Stages.

fn staged(settings: Settings, stages: usize) -> World {
    let mut world = World::of_stages(settings, stages);
    world.form_group(PLENTY);
    world
}

fn working(plan: &flotilla_shared::StepPlan) -> Vec<u64> {
    plan.work.iter().map(|work| work.sequence.0).collect()
}

/// As many steps in flight as there are stages, of different sequences, and one ahead.
#[test]
fn what_decodes_goes_round_so_that_no_stage_waits() {
    for stages in [2, 3] {
        let mut world = staged(Settings { sequences_max: 8, ..small() }, stages);
        (1..=6).for_each(|id| world.arrive(request(id, 1, 30)));
        world.settle_actions();
        // Until all have had their prompts, and their lanes.
        (0..12).for_each(|_| _ = world.step());
        assert_eq!(world.in_flight.len(), stages + 1);
        let mut round: Vec<Vec<u64>> = world.in_flight.iter().map(|(plan, _)| working(plan)).collect();
        assert_eq!(round[0], round[stages], "the same lane, one step ahead");
        round.truncate(stages);
        assert!(round.iter().all(|lane| lane.len() == 6 / stages), "{round:?}");
        let mut all = round.concat();
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3, 4, 5, 6]);
        world.run_to_end();
    }
}

/// Chunks follow each other: none waits for what comes of the one before.
#[test]
fn a_long_prompt_fills_all_stages() {
    let mut world = staged(small(), 3);
    world.arrive(request(1, 60, 2));
    world.settle_actions();
    assert_eq!(world.in_flight.len(), 4);
    assert!(world.in_flight.iter().all(|(plan, _)| plan.token_count() == 8));
    world.run_to_end();
}

/// Nobody decodes faster alone: one lane's next step is ahead, and no more.
#[test]
fn one_sequence_alone_runs_one_step_ahead() {
    let mut world = staged(small(), 3);
    world.arrive(request(1, 4, 20));
    world.settle_actions();
    assert_eq!(world.in_flight.len(), 2);
    world.run_to_end();
    assert_eq!(world.plans.len(), 20);
}

/// When others end, who is left is dealt anew.
#[test]
fn lanes_stay_even_when_sequences_end() {
    let mut world = staged(Settings { sequences_max: 8, ..small() }, 2);
    (1..=8).for_each(|id| world.arrive(request(id, 1, 40)));
    world.settle_actions();
    (0..10).for_each(|_| _ = world.step());
    let of_first = working(&world.in_flight[0].0);
    assert_eq!(of_first.len(), 4);
    // All of one lane but one leave.
    of_first.iter().skip(1).for_each(|&id| world.cancel(id));
    (0..4).for_each(|_| _ = world.step());
    let lanes: Vec<usize> = world.in_flight.iter().take(2).map(|(plan, _)| plan.work.len()).collect();
    assert_eq!(lanes.iter().sum::<usize>(), 5, "{lanes:?}");
    assert!(lanes.iter().all(|lane| (2..=3).contains(lane)), "{lanes:?}");
    world.run_to_end();
}

// One step ahead.

#[test]
fn the_next_step_is_there_before_the_last_one_is_back() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 4, 5));
    world.settle_actions();
    let ahead = |world: &World| world.plans.iter().map(|plan| plan.work[0].ahead).collect::<Vec<_>>();
    assert_eq!((ahead(&world), world.client(1).emitted.len()), (vec![false, true], 0));
    world.run_to_end();
    assert_eq!(world.plans.len(), 5, "no step more than there are tokens: length is known beforehand");
    assert!(ahead(&world).iter().skip(1).all(|&ahead| ahead));
}

#[test]
fn what_was_planned_past_a_stop_token_is_ignored() {
    let mut world = World::with_blocks(small(), PLENTY);
    let mut stops = request(1, 4, 50);
    let third = world::reference(&stops, 400)[2];
    stops.stop_tokens = vec![third];
    world.arrive(stops);
    world.run_to_end();
    assert_eq!(world.reason(1), Some(FinishReason::StopToken(third)));
    assert_eq!(world.plans.len(), 4, "one step too many");
}

#[test]
fn nobody_is_preempted_while_a_step_is_in_flight() {
    let mut world = World::with_blocks(small(), 5);
    (1..=2).for_each(|id| world.arrive(request(id, 5, 60)));
    world.settle_actions();
    let mut depth = vec![];
    while world.scheduler.counters().preemptions == 0 {
        depth.push(world.in_flight.len());
        assert!(world.step_returns());
        world.settle_actions();
    }
    assert_eq!(depth.last(), Some(&1), "the steps in flight came back first: {depth:?}");
    world.run_to_end();
    assert!(world.client(1).is_complete() && world.client(2).is_complete());
}

// Shared beginnings.

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

#[test]
fn a_preempted_sequence_finds_most_of_what_it_had() {
    let mut world = World::with_blocks(small(), 14);
    world.arrive(request(1, 40, 90));
    world.arrive(request(2, 40, 90));
    world.run_to_end();
    assert!(world.scheduler.counters().preemptions > 0);
    assert!(world.client(1).is_complete() && world.client(2).is_complete());
    assert!(world.scheduler.counters().prefix_cached_tokens > 0);
}

// Windows.

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

// Clients.

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

// Masks and guesses.

#[test]
fn a_guided_sequence_waits_for_its_mask_and_the_others_do_not() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(Request { guided: true, ..request(1, 2, 5) });
    (2..=3).for_each(|id| world.arrive(request(id, 2, 9)));
    world.settle_actions();
    assert_eq!(world.rows(), [(2, 1), (3, 1)], "the token that it samples is not known yet");
    world.step();
    assert_eq!(world.rows(), [(2, 1), (3, 1)], "known, and its mask is being made");
    world.masks_arrive();
    world.step();
    assert_eq!(world.rows(), [(1, 1), (2, 1), (3, 1)]);
    assert!(!world.plan().work.iter().any(|work| work.sequence == SequenceId(1) && work.ahead));
    world.run_to_end();
    assert!((1..=3).all(|id| world.client(id).is_complete()));
}

#[test]
fn where_all_wait_for_masks_they_go_on_together() {
    let mut world = World::with_blocks(small(), PLENTY);
    (1..=4).for_each(|id| world.arrive(Request { guided: true, ..request(id, 1, 6) }));
    world.run_to_end();
    assert_eq!(world.plans.len(), 6, "no step with a part of them");
}

/// The wrong guess lay where the last token would have gone, in a block that was named as if it held it.
/// Found by the simulation, seed 2450 of 2026-11-27.
#[test]
fn a_wrong_guess_is_not_found_as_a_beginning() {
    let speculation = Some(Speculation { drafts_max: 2, ngram_max: 1, ngram_min: 1 });
    for id in 1..60 {
        let mut world = World::with_blocks(Settings { speculation, ..small() }, PLENTY);
        let mut stops = request(id, 14, 10);
        stops.stop_tokens = vec![world::reference(&stops, 400)[1]];
        world.arrive(stops);
        world.run_to_end();
        let mut next = request(100, 5, 4);
        let turn = [&world.client(id).request.prompt[..], &world.client(id).emitted[..], &next.prompt[..]];
        next.prompt = turn.concat();
        world.arrive(next);
        world.run_to_end();
        assert!(world.client(100).is_complete());
    }
}

/// Who wrote a grammar that takes its time holds up the others by two milliseconds at most.
#[test]
fn late_masks_are_not_waited_for_long() {
    let mut world = World::with_blocks(small(), PLENTY);
    (1..=3).for_each(|id| world.arrive(Request { guided: true, ..request(id, 1, 6) }));
    world.arrive(request(4, 1, 9));
    world.settle_actions();
    assert!(world.step_returns());
    world.settle_actions();
    while world.step_returns() {
        world.settle_actions();
    }
    assert!(world.in_flight.is_empty(), "most are guided: their masks are waited for");
    let until = world.scheduler.wakes_at().expect("not for ever");
    assert!(until <= world.now() + Duration::from_millis(2));
    world.time_passes(2);
    world.settle_actions();
    assert_eq!(world.rows(), [(4, 1)]);
    world.run_to_end();
}

#[test]
fn guesses_save_steps_and_change_no_token() {
    let speculation = Some(Speculation { drafts_max: 3, ngram_max: 2, ngram_min: 1 });
    let run = |speculation| {
        let mut world = World::with_blocks(Settings { speculation, ..small() }, PLENTY);
        let mut repeats = request(1, 3, 60);
        // The prompt holds what will be generated, as a text to be copied does.
        let answer = world::reference(&repeats, 400);
        repeats.prompt = [&answer[..30], &repeats.prompt[..]].concat();
        world.arrive(repeats);
        world.run_to_end();
        assert!(world.client(1).is_complete());
        (world.plans.len(), world.scheduler.counters())
    };
    let ((plain, none), (guessing, counters)) = (run(None), run(speculation));
    assert_eq!((none.drafted_tokens, none.accepted_tokens), (0, 0));
    assert!(counters.accepted_tokens > 0 && counters.drafted_tokens >= counters.accepted_tokens);
    assert_eq!(guessing as u64 + counters.accepted_tokens, plain as u64);
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
