//! What one step costs the scheduler: 64 sequences decode, one step after the other, two in flight, and
//! `handle`, every `poll` and `reclaim` of a step are timed together. The workers are not there: their
//! outcome is made up between the timings.
//!
//! `cargo run --release -p flotilla-scheduler --example step_cost`
//!
//! Figures, dated, are in docs/performance.md.

use flotilla_scheduler::{Action, ClientId, Event, Request, Scheduler, Settings};
use flotilla_shared::step::Sampled;
use flotilla_shared::{Epoch, KvBlocks, SequenceId, StepOutcome, StepPlan};
use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

const STEPS: usize = 20_000;

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock; the scheduler does not")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    for sequence_count in [1, 8, 64, 256] {
        decode(sequence_count, 0, true);
    }
    decode(64, 1024, true);
    decode(64, 0, false);
    for prefix_cache in [true, false, true, false] {
        prompts(prefix_cache);
    }
}

struct Bench {
    scheduler: Scheduler,
    answers: VecDeque<StepOutcome>,
    took: Duration,
}

impl Bench {
    fn new(sequences_max: usize, waiting_max: usize, prefix_cache: bool) -> Bench {
        let settings = Settings { sequences_max, waiting_max, prefix_cache, ..Settings::default() };
        let mut scheduler = Scheduler::new(settings).expect("settings that work");
        let kv_blocks = KvBlocks { full: 400_000, window: 40_000 };
        scheduler.handle(Duration::ZERO, Event::GroupFormed { epoch: Epoch(1), kv_blocks, stages: 1 });
        Bench { scheduler, answers: VecDeque::new(), took: Duration::ZERO }
    }

    fn arrive(&mut self, id: u64, prompt_tokens: u32, tokens_max: usize) {
        // No two begin alike, so that nothing is found.
        let prompt = (0..prompt_tokens).map(|at| at ^ (id as u32) << 16).collect();
        let (sequence, client) = (SequenceId(id), ClientId(id % 8));
        let stop_tokens = vec![200_002, 200_012];
        let request = Request { sequence, prompt, tokens_max, stop_tokens, client, ..Request::default() };
        self.scheduler.handle(Duration::ZERO, Event::Arrived(request));
    }

    /// One outcome comes back, and what follows; the plan's tokens.
    fn step(&mut self) -> usize {
        let outcome = self.answers.pop_front();
        let start = now();
        if let Some(outcome) = outcome {
            self.scheduler.handle(Duration::ZERO, Event::Stepped(outcome));
        }
        let (mut took, mut rows) = (start.elapsed(), 0);
        loop {
            let start = now();
            let action = self.scheduler.poll();
            took += start.elapsed();
            match action {
                Some(Action::Step(plan)) => {
                    rows += plan.token_count();
                    self.answers.push_back(answer(&plan));
                    let start = now();
                    self.scheduler.reclaim(plan);
                    took += start.elapsed();
                }
                Some(other) => drop(black_box(other)),
                None => break,
            }
        }
        self.took = took;
        rows
    }
}

fn answer(plan: &StepPlan) -> StepOutcome {
    let sampling = plan.work.iter().filter(|work| work.sample);
    let sampled = sampling.map(|work| Sampled { sequence: work.sequence, token: 5, logprobs: None });
    let sampled = sampled.collect();
    StepOutcome { epoch: plan.epoch, step: plan.step, sampled, ..StepOutcome::default() }
}

fn decode(sequence_count: usize, waiting_count: usize, prefix_cache: bool) {
    // Room for every client's share.
    let mut bench = Bench::new(sequence_count, 4 * (sequence_count + waiting_count), prefix_cache);
    for id in 0..(sequence_count + waiting_count) as u64 {
        bench.arrive(id, 100, usize::MAX);
    }
    while bench.step() != sequence_count {} // until all decode
    let mut nanos: Vec<u128> = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        assert_eq!(bench.step(), sequence_count);
        nanos.push(bench.took.as_nanos());
    }
    nanos.sort_unstable();
    let percentile = |p: usize| nanos[(nanos.len() - 1) * p / 100] as f64 / 1000.0;
    println!(
        "{sequence_count:4} sequences decode, {waiting_count:4} wait, prefix cache {prefix_cache}: \
         p50 {:6.1} us, p99 {:6.1} us a step",
        percentile(50),
        percentile(99)
    );
}

/// What the prefix cache costs where nothing is ever found: prompts of 512 tokens, 64 tokens each.
fn prompts(prefix_cache: bool) {
    let mut bench = Bench::new(64, 16_384, prefix_cache);
    (0..2000).for_each(|id| bench.arrive(id, 512, 64));
    let (mut took, mut rows) = (Duration::ZERO, 0);
    while bench.scheduler.load().sequences_running + bench.scheduler.load().sequences_waiting > 0 {
        rows += bench.step();
        took += bench.took;
    }
    println!(
        "2000 prompts of 512 + 64 tokens, prefix cache {prefix_cache}: {:.1} ms, {:.3} us a token",
        took.as_secs_f64() * 1e3,
        took.as_secs_f64() * 1e6 / rows as f64
    );
}
