//! The model is cut into stages: steps go round the lanes; and one step is planned ahead.

use crate::world::{World, reference, request};
use crate::{PLENTY, small};
use flotilla_scheduler::{FinishReason, Settings};

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
    let third = reference(&stops, 400)[2];
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
