//! What choosing the tokens of a step costs on the host: 64 rows of the published vocabulary, on one rank and on
//! two that are threads of this process. On a card plain rows do not pass through here.
//!
//!   cargo bench -p flotilla-engine --bench sampling
//!
//! Each number is the best and the median of several steps, by the clock.

use flotilla_engine::backend::BackendError;
use flotilla_engine::collective::{Collective, Solo, threads};
use flotilla_engine::sample::{History, SampleRow, Sampleable, Sampler, Shard};
use flotilla_shared::plan::apportion;
use flotilla_shared::sampling::mix;
use flotilla_shared::{Sampling, TokenId};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

const VOCAB: usize = 201_088;
const ROWS: usize = 64;
const STEPS: usize = 7;

struct Given(Arc<Vec<Vec<f32>>>, Range<usize>);

impl Shard for Given {
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        Ok(&self.0[row][self.1.clone()])
    }
}

/// Near a model's: a few tokens far above the others.
fn logits(row: usize) -> Vec<f32> {
    let even = |i: usize| (mix((row << 32 | i) as u64) >> 40) as f32 / (1 << 24) as f32;
    (0..VOCAB).map(|i| 22.0 * even(i).powi(6) - 4.0 + if i % 50_000 == row { 8.0 } else { 0.0 }).collect()
}

fn rows(sampling: &Sampling) -> Vec<SampleRow> {
    let context: Vec<TokenId> = (0..1000).map(|i| (mix(i) % VOCAB as u64) as TokenId).collect();
    let history = sampling.has_penalties().then(|| Arc::new(History::new(&context, 500)));
    let row = |n: usize| {
        let sampling = Sampling { seed: n as u64, ..sampling.clone() };
        SampleRow { history: history.clone(), ..SampleRow::new(sampling, 100, n) }
    };
    (0..ROWS).map(row).collect()
}

/// Milliseconds of each step.
fn steps(rows: &[SampleRow], mut shard: Given, mut collective: impl Collective) -> Vec<f64> {
    let sampleable = Sampleable::new(shard.1.clone(), &[0..200_019]);
    let mut sampler = Sampler::new(sampleable);
    let mut times = Vec::new();
    for _ in 0..STEPS {
        let start = Instant::now();
        sampler.sample(rows, &mut shard, &mut collective).expect("threads of one process");
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    times
}

fn main() {
    let logits: Arc<Vec<Vec<f32>>> = Arc::new((0..ROWS).map(logits).collect());
    let warm = Sampling { temperature: 1.0, ..Sampling::GREEDY };
    let all = Sampling {
        temperature: 0.8,
        top_p: 0.9,
        min_p: 0.01,
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        logit_bias: (0..100).map(|i| (i * 2000, -1.0)).collect(),
        logprobs: Some(5),
        ..Sampling::GREEDY
    };
    let cases = [
        ("greedy", Sampling::GREEDY),
        ("temperature 1", warm.clone()),
        ("top-k 50", Sampling { top_k: 50, ..warm.clone() }),
        ("top-p 0.9", Sampling { top_p: 0.9, ..warm.clone() }),
        ("top-p 0.9, temperature 3", Sampling { top_p: 0.9, temperature: 3.0, ..warm.clone() }),
        ("logprobs 5", Sampling { logprobs: Some(5), ..warm }),
        ("all parameters", all),
    ];
    println!("{ROWS} rows of {VOCAB} logits; ms a step, best and median of {STEPS}");
    for (name, sampling) in cases {
        let rows = rows(&sampling);
        let alone = steps(&rows, Given(logits.clone(), 0..VOCAB), Solo::new());
        let members = threads::group(2).into_iter().zip(apportion(VOCAB, &[1.0, 1.0]));
        let of_two: Vec<Vec<f64>> = std::thread::scope(|scope| {
            let threads: Vec<_> = members
                .map(|(member, vocab)| {
                    let (rows, shard) = (&rows, Given(logits.clone(), vocab));
                    scope.spawn(move || steps(rows, shard, member))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a rank ends")).collect()
        });
        let [alone, two] = [&alone, &of_two[0]].map(|times| (times[0], times[STEPS / 2]));
        println!("{name:<26} 1 rank {:7.1} {:7.1}   2 ranks {:7.1} {:7.1}", alone.0, alone.1, two.0, two.1);
    }
}
