//! A step allocates nothing once its like has been: 64 sequences decode, and every allocation of `handle`,
//! `poll` and `reclaim` is counted. One step ahead, with the prefix cache, over some thousand blocks.

use allocation_counter::measure;
use flotilla_scheduler::{Action, Event, Request, Scheduler, Settings};
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepOutcome, StepPlan};
use std::collections::VecDeque;
use std::time::Duration;

const SEQUENCES: u64 = 64;

fn answer(plan: &StepPlan) -> StepOutcome {
    let sampling = plan.work.iter().filter(|work| work.sample);
    let sampled = sampling.map(|work| Sampled { sequence: work.sequence, token: 5, logprobs: None });
    let sampled = sampled.collect();
    StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..StepOutcome::default() }
}

/// Polls until `None`; the answers to steps, and the allocations of the scheduler.
fn settle(scheduler: &mut Scheduler, answers: &mut VecDeque<StepOutcome>) -> u64 {
    let mut allocations = 0;
    loop {
        let mut action = None;
        allocations += measure(|| action = scheduler.poll()).count_total;
        match action {
            Some(Action::Step(plan)) => {
                answers.push_back(answer(&plan));
                allocations += measure(|| scheduler.reclaim(plan)).count_total;
            }
            Some(_) => {}
            None => return allocations,
        }
    }
}

#[test]
fn a_step_of_decodes_allocates_nothing() {
    count(1);
}

#[test]
fn nor_does_one_of_several_stages() {
    count(3);
}

fn count(stages: usize) {
    let mut scheduler = Scheduler::new(Settings::default()).unwrap();
    scheduler.leave_unchecked();
    let now = Duration::ZERO;
    scheduler.handle(now, Event::GroupFormed { epoch: Epoch(1), kv_blocks: KvBlocks::plain(20_000), stages });
    for id in 0..SEQUENCES {
        let (sequence, prompt) = (SequenceId(id), vec![id as u32; 100]);
        let request = Request { sequence, prompt, tokens_max: 4000, ..Request::default() };
        scheduler.handle(now, Event::Arrived(request));
    }
    let mut answers = VecDeque::new();
    settle(&mut scheduler, &mut answers);
    let (mut counted, mut first) = (0, 0);
    for step in 0..3000 {
        let outcome = answers.pop_front().expect("a step is in flight");
        let mut allocations = measure(|| scheduler.handle(now, Event::Stepped(outcome))).count_total;
        allocations += settle(&mut scheduler, &mut answers);
        if step < 200 { first += allocations } else { counted += allocations }
    }
    assert_eq!(counted, 0, "allocations in 2800 steps");
    assert!(first > 0, "the counter counts");
    assert_eq!(scheduler.load().sequences_running as u64, SEQUENCES);
}
