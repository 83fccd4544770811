//! Groups that come, are lost, and answer what they were not asked for.

use crate::world::{World, request};
use crate::{PLENTY, small};
use flotilla_scheduler::{Event, GroupFault};
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepId, StepOutcome};

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
