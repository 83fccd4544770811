//! What one step costs the scheduler: 64 sequences decode, one step after the other, and `handle` and
//! every `poll` of a step are timed together. The workers are not there: their outcome is made up
//! between the timings, and the plan is dropped in them as the caller would drop it.
//!
//! `cargo run --release -p flotilla-scheduler --example step_cost`
//!
//! 2026-11-23, 2 vCPU of an AMD EPYC that were busy with builds, best of 3 runs, p50 / p99:
//!
//! | decode | wait | us a step  |
//! |-------:|-----:|-----------:|
//! |      1 |    0 |  0.1 / 0.1 |
//! |      8 |    0 |  0.4 / 0.7 |
//! |     64 |    0 |  3.3 / 8.0 |
//! |     64 | 1024 |  3.5 / 7.4 |
//! |    256 |    0 |   15 / 79  |
//!
//! What is left is the plan itself: a vector of tokens for each sequence, owned by the caller.

use flotilla_scheduler::{Action, Event, Request, Scheduler, Settings};
use flotilla_shared::KvBlocks;
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, SequenceId, StepOutcome, StepPlan};
use std::time::{Duration, Instant};

const STEPS: usize = 20_000;

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock; the scheduler does not")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    for sequence_count in [1, 8, 64, 256] {
        measure(sequence_count, 0);
    }
    measure(64, 1024);
}

fn measure(sequence_count: usize, waiting_count: usize) {
    let settings = Settings {
        tokens_per_step_max: 512,
        sequences_max: sequence_count,
        waiting_max: sequence_count + waiting_count,
        ..Settings::default()
    };
    let mut scheduler = Scheduler::new(settings).expect("settings that work");
    scheduler
        .handle(Duration::ZERO, Event::GroupFormed { epoch: Epoch(1), kv_blocks: KvBlocks::plain(400_000) });
    for id in 0..(sequence_count + waiting_count) as u64 {
        scheduler.handle(Duration::ZERO, Event::Arrived(request(id)));
    }
    let mut plan = poll_all(&mut scheduler).expect("a first step");
    while plan.work.len() < sequence_count || plan.work.iter().any(|work| work.tokens.len() > 1) {
        plan = step(&mut scheduler, &plan).0; // until all decode
    }
    let mut nanos: Vec<u64> = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        let (next, took) = step(&mut scheduler, &plan);
        nanos.push(took.as_nanos() as u64);
        plan = next;
    }
    nanos.sort_unstable();
    let percentile = |p: usize| nanos[(nanos.len() - 1) * p / 100] as f64 / 1000.0;
    println!(
        "{sequence_count:4} sequences decode, {waiting_count:4} wait: p50 {:6.1} us, p99 {:6.1} us a step",
        percentile(50),
        percentile(99)
    );
}

fn request(id: u64) -> Request {
    Request {
        sequence: SequenceId(id),
        prompt: vec![7; 100],
        tokens_max: usize::MAX,
        stop_tokens: vec![200_002, 200_012],
        ..Request::default()
    }
}

fn step(scheduler: &mut Scheduler, plan: &StepPlan) -> (StepPlan, Duration) {
    let sampling = plan.work.iter().filter(|work| work.sample);
    let sampled =
        sampling.map(|work| Sampled { sequence: work.sequence, token: 5, logprobs: None }).collect();
    let outcome = StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..Default::default() };
    let start = now();
    scheduler.handle(Duration::ZERO, Event::Stepped(outcome));
    let plan = poll_all(scheduler).expect("a next step");
    (plan, start.elapsed())
}

fn poll_all(scheduler: &mut Scheduler) -> Option<StepPlan> {
    let mut plan = None;
    while let Some(action) = scheduler.poll() {
        match action {
            Action::Step(step) => plan = Some(step),
            other => drop(std::hint::black_box(other)),
        }
    }
    plan
}
