//! A step allocates nothing once its like has been: 64 sequences decode, and every allocation of `handle`,
//! `poll` and `reclaim` is counted. One step ahead, with the prefix cache, over some thousand blocks.

use flotilla_scheduler::{Action, Event, Request, Scheduler, Settings};
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepOutcome, StepPlan};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps to the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const SEQUENCES: u64 = 64;

fn answer(plan: &StepPlan) -> StepOutcome {
    let sampling = plan.work.iter().filter(|work| work.sample);
    let sampled = sampling.map(|work| Sampled { sequence: work.sequence, token: 5, logprobs: None });
    let sampled = sampled.collect();
    StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..StepOutcome::default() }
}

/// Polls until `None`; the answers to steps, and the allocations of the scheduler.
fn settle(scheduler: &mut Scheduler, answers: &mut VecDeque<StepOutcome>) -> usize {
    let mut allocations = 0;
    loop {
        let before = ALLOCATIONS.get();
        let action = scheduler.poll();
        allocations += ALLOCATIONS.get() - before;
        match action {
            Some(Action::Step(plan)) => {
                answers.push_back(answer(&plan));
                let before = ALLOCATIONS.get();
                scheduler.reclaim(plan);
                allocations += ALLOCATIONS.get() - before;
            }
            Some(_) => {}
            None => return allocations,
        }
    }
}

#[test]
#[cfg_attr(debug_assertions, ignore = "the invariants that debug builds check allocate: run with --release")]
fn a_step_of_decodes_allocates_nothing() {
    let mut scheduler = Scheduler::new(Settings::default()).unwrap();
    let now = Duration::ZERO;
    scheduler.handle(now, Event::GroupFormed { epoch: Epoch(1), kv_blocks: KvBlocks::plain(20_000) });
    for id in 0..SEQUENCES {
        let (sequence, prompt) = (SequenceId(id), vec![id as u32; 100]);
        let request = Request { sequence, prompt, tokens_max: 4000, ..Request::default() };
        scheduler.handle(now, Event::Arrived(request));
    }
    let mut answers = VecDeque::new();
    settle(&mut scheduler, &mut answers);
    for (step, counts) in (0..3000).map(|step| (step, step >= 200)) {
        let outcome = answers.pop_front().expect("a step is in flight");
        let before = ALLOCATIONS.get();
        scheduler.handle(now, Event::Stepped(outcome));
        let allocations = ALLOCATIONS.get() - before + settle(&mut scheduler, &mut answers);
        assert!(!counts || allocations == 0, "{allocations} allocations in step {step}");
    }
    assert_eq!(scheduler.load().sequences_running as u64, SEQUENCES);
}
