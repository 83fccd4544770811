//! What choosing the tokens of a step costs on the host: 64 rows of the published vocabulary, on one rank and on
//! two that are threads of this process, then on one rank with two threads. On a card plain rows do not pass
//! through here.
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
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

const VOCAB: usize = 201_088;
const ROWS: usize = 64;
const STEPS: usize = 7;

/// Every row's logits, the rank's part of them, and its threads.
struct Given<'a>(&'a [Vec<f32>], Range<usize>, Option<&'a rayon::ThreadPool>);

impl Shard for Given<'_> {
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        Ok(&self.0[row][self.1.clone()])
    }

    fn each<T: Send>(
        &mut self,
        rows: &[usize],
        work: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>, BackendError> {
        let one = |at: usize| work(at, &self.0[rows[at]][self.1.clone()]);
        Ok(match self.2 {
            Some(pool) => pool.install(|| (0..rows.len()).into_par_iter().map(&one).collect()),
            None => (0..rows.len()).map(one).collect(),
        })
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
fn steps(rows: &[SampleRow], mut shard: Given<'_>, mut collective: impl Collective) -> Vec<f64> {
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
    let logits: Vec<Vec<f32>> = (0..ROWS).map(logits).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("the system gives threads");
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
        let alone = steps(&rows, Given(&logits, 0..VOCAB, None), Solo::new());
        let threaded = steps(&rows, Given(&logits, 0..VOCAB, Some(&pool)), Solo::new());
        let members = threads::group(2).into_iter().zip(apportion(VOCAB, &[1.0, 1.0]));
        let of_two: Vec<Vec<f64>> = std::thread::scope(|scope| {
            let threads: Vec<_> = members
                .map(|(member, vocab)| {
                    let (rows, shard) = (&rows, Given(&logits, vocab, None));
                    scope.spawn(move || steps(rows, shard, member))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a rank ends")).collect()
        });
        let [alone, two, threaded] =
            [&alone, &of_two[0], &threaded].map(|times| (times[0], times[STEPS / 2]));
        print!("{name:<26} 1 rank {:7.1} {:7.1}   2 ranks {:7.1} {:7.1}", alone.0, alone.1, two.0, two.1);
        println!("   2 threads {:7.1} {:7.1}", threaded.0, threaded.1);
    }
}
