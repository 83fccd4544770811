//! How a sequence ends.

use crate::world::{World, reference, request};
use crate::{PLENTY, small};
use flotilla_scheduler::{Event, FinishReason, Rejection, Settings};
use flotilla_shared::SequenceId;

#[test]
fn a_stop_token_is_emitted_and_counted() {
    let mut world = World::with_blocks(small(), PLENTY);
    let mut request = request(1, 4, 50);
    let third = reference(&request, 200)[2];
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
