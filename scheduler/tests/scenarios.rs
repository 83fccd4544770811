//! What the scheduler does, one story each. The world checks in every story that no token is lost,
//! repeated or wrong, and that the workers are never asked for what the contract forbids.

mod world;

use flotilla_scheduler::{Event, FinishReason, GroupFault, Rejection, Settings};
use flotilla_shared::KvBlocks;
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, SequenceId, StepId, StepOutcome};
use world::{World, request};

/// Small numbers that a reader can follow: steps of 8 tokens, one at a time, 4 sequences, a queue of 4.
fn small() -> Settings {
    Settings {
        tokens_per_step_max: 8,
        sequences_max: 4,
        waiting_max: 4,
        context_max: 200,
        window_tokens: 32,
        steps_in_flight_max: 1,
        prefix_cache: false,
        speculation: None,
    }
}

const PLENTY: usize = 100;

// Batching.

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

// Blocks.

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

// How a sequence ends.

#[test]
fn a_stop_token_is_emitted_and_counted() {
    let mut world = World::with_blocks(small(), PLENTY);
    let mut request = request(1, 4, 50);
    let third = world::reference(&request, 200)[2];
    request.stop_tokens = vec![999, third];
    world.arrive(request);
    world.run_to_end();
    assert_eq!(world.reason(1), Some(FinishReason::StopToken(third)));
    assert_eq!(world.client(1).emitted.last(), Some(&third));
}

#[test]
fn length_ends_at_tokens_max_and_at_the_end_of_the_context() {
    let mut world = World::with_blocks(Settings { context_max: 30, ..small() }, PLENTY);
    world.arrive(request(1, 10, 7));
    world.arrive(request(2, 10, 1000));
    world.arrive(request(3, 10, 0));
    world.run_to_end();
    let tokens = |id| (world.reason(id), world.client(id).emitted.len());
    assert_eq!(tokens(1), (Some(FinishReason::Length), 7));
    assert_eq!(tokens(2), (Some(FinishReason::Length), 20));
    assert_eq!(tokens(3), (Some(FinishReason::Length), 0));
}

#[test]
fn what_cannot_be_served_is_rejected_with_its_reason() {
    let mut world = World::new(small());
    world.arrive(request(1, 0, 5));
    world.arrive(request(2, 200, 5));
    for id in 3..=7 {
        world.arrive(request(id, 199, 5));
    }
    world.tell(Event::Arrived(request(3, 1, 1)));
    world.settle_actions();
    let rejections = [
        (SequenceId(1), Rejection::EmptyPrompt),
        (SequenceId(2), Rejection::PromptTooLong { tokens: 200, tokens_max: 199 }),
        (SequenceId(7), Rejection::QueueFull { waiting_max: 4 }),
        (SequenceId(3), Rejection::DuplicateSequence),
    ];
    assert_eq!(world.rejections, rejections);
    world.form_group(PLENTY);
    world.run_to_end();
}

#[test]
fn a_client_that_leaves_the_queue_is_gone() {
    let mut world = World::new(small());
    world.arrive(request(1, 4, 4));
    world.arrive(request(2, 4, 4));
    world.cancel(1);
    world.cancel(1);
    world.cancel(77);
    world.form_group(PLENTY);
    world.settle_actions();
    assert_eq!(world.reason(1), Some(FinishReason::Cancelled));
    assert_eq!(world.rows(), [(2, 4)]);
    world.run_to_end();
}

#[test]
fn a_client_that_leaves_during_a_step_hears_nothing_more_of_it() {
    let mut world = World::with_blocks(small(), 2);
    world.arrive(request(1, 4, 30)); // the one that leaves
    world.arrive(request(2, 4, 3));
    world.settle_actions();
    world.cancel(1);
    world.settle_actions();
    assert_eq!(world.reason(1), Some(FinishReason::Cancelled));
    world.arrive(request(3, 4, 3)); // wants its block
    world.settle_actions();
    assert_eq!(world.plans.len(), 1, "nothing is planned before the step is back");
    world.step();
    assert_eq!(world.plan().release, [SequenceId(1)]);
    assert!(world.client(1).emitted.is_empty());
    world.run_to_end();
    assert!(world.client(2).is_complete() && world.client(3).is_complete());
}

// The group.

#[test]
fn requests_wait_for_a_group() {
    let mut world = World::new(small());
    world.arrive(request(1, 4, 4));
    world.settle_actions();
    assert!(world.in_flight.is_empty());
    world.form_group(PLENTY);
    world.run_to_end();
    assert!(world.client(1).is_complete());
}

#[test]
fn a_lost_group_costs_no_token_and_repeats_none() {
    let mut world = World::with_blocks(small(), PLENTY);
    for id in 1..=3 {
        world.arrive(request(id, 5, 20));
    }
    for _ in 0..6 {
        world.step();
    }
    let stale = world.in_flight[0].1.clone();
    world.lose_group();
    world.tell(Event::Stepped(stale.clone()));
    world.settle_actions();
    assert_eq!(world.scheduler.load().sequences_waiting, 3);
    world.form_group(PLENTY);
    world.settle_actions();
    world.tell(Event::Stepped(stale));
    world.tell(Event::GroupLost { epoch: Epoch(1) });
    world.settle_actions();
    assert_eq!(world.plan().epoch, Epoch(2));
    assert_eq!(world.plan().step, StepId(1));
    world.run_to_end();
    assert!((1..=3).all(|id| world.client(id).is_complete()));
}

#[test]
fn a_new_group_replaces_one_that_was_not_reported_lost() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 5, 20));
    world.step();
    world.form_group(PLENTY);
    world.run_to_end();
    assert!(world.client(1).is_complete());
}

#[test]
fn a_group_of_a_past_epoch_is_refused() {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 5, 5));
    world.step();
    world.tell(Event::GroupFormed { epoch: Epoch(1), kv_blocks: KvBlocks::plain(3), stages: 1 });
    assert_eq!(world.scheduler.load().kv_blocks, PLENTY);
    world.run_to_end();
}

#[test]
fn a_group_without_blocks_is_abandoned() {
    let mut world = World::new(small());
    world.arrive(request(1, 5, 5));
    world.form_group(0);
    world.settle_actions();
    assert_eq!(world.faults, [GroupFault::NoBlocks]);
    world.form_group(PLENTY);
    world.run_to_end();
    assert!(world.client(1).is_complete());
}

/// Two decode; the outcome of their third step is changed.
fn answered_wrongly(change: impl FnOnce(&mut StepOutcome)) -> Vec<GroupFault> {
    let mut world = World::with_blocks(small(), PLENTY);
    world.arrive(request(1, 3, 8));
    world.arrive(request(2, 3, 8));
    world.step();
    world.step();
    let (_, mut outcome) = world.in_flight[0].clone();
    change(&mut outcome);
    world.tell(Event::Stepped(outcome));
    world.settle_actions();
    assert!(world.in_flight.is_empty() && world.client(1).emitted.len() == 2);
    world.form_group(PLENTY);
    world.run_to_end();
    assert!(world.client(1).is_complete() && world.client(2).is_complete());
    world.faults
}

#[test]
fn an_outcome_that_was_not_asked_for_ends_the_epoch_and_costs_no_token() {
    let (step, first, second) = (StepId(3), SequenceId(1), SequenceId(2));
    assert_eq!(
        answered_wrongly(|outcome| outcome.sampled.truncate(1)),
        [GroupFault::SampledCount { step, expected: 2, found: 1 }]
    );
    assert_eq!(
        answered_wrongly(|outcome| outcome.sampled.push(Sampled {
            sequence: first,
            token: 0,
            logprobs: None
        })),
        [GroupFault::SampledCount { step, expected: 2, found: 3 }]
    );
    assert_eq!(
        answered_wrongly(|outcome| outcome.sampled.swap(0, 1)),
        [GroupFault::SampledSequence { step, expected: first, found: second }]
    );
    assert_eq!(
        answered_wrongly(|outcome| outcome.sampled[1].sequence = SequenceId(9)),
        [GroupFault::SampledSequence { step, expected: second, found: SequenceId(9) }]
    );
}
