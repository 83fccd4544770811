//! Rows of given logits, and their tokens over some number of ranks.

use flotilla_engine::backend::BackendError;
use flotilla_engine::collective::{Collective, Solo, threads};
use flotilla_engine::sample::{Chosen, SampleRow, Sampleable, Sampler, Shard};
use flotilla_shared::TokenId;
use flotilla_shared::plan::apportion;
use flotilla_shared::sampling::mix;
use std::ops::Range;

pub const VOCAB: usize = 6000;

/// With gaps, and without the last ids.
pub fn sampleable() -> Vec<Range<TokenId>> {
    vec![0..100, 150..151, 400..VOCAB as u32 - 3]
}

/// Rows and the logits of the whole vocabulary that they are chosen by.
#[derive(Clone, Default)]
pub struct Rows {
    pub rows: Vec<SampleRow>,
    pub logits: Vec<Vec<f32>>,
}

impl Rows {
    pub fn push(&mut self, row: SampleRow, logits: Vec<f32>) {
        self.rows.push(SampleRow { logit_row: self.logits.len(), ..row });
        self.logits.push(logits);
    }

    /// As so many ranks choose, each with its part; some have none.
    pub fn on(&self, ranks: usize) -> Vec<Option<Chosen>> {
        let shares: Vec<f64> = (0..ranks).map(|rank| [3.0, 0.0, 1.0][rank % 3]).collect();
        let members = threads::group(ranks).into_iter().zip(apportion(self.vocab(), &shares));
        let threads: Vec<_> = members
            .map(|(mut member, vocab)| {
                let rows = self.clone();
                std::thread::spawn(move || rows.part(vocab, &mut member))
            })
            .collect();
        let mut chosen: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let first = chosen.swap_remove(0);
        assert!(chosen.iter().all(|other| *other == first), "ranks chose differently");
        first
    }

    pub fn alone(&self) -> Vec<Option<Chosen>> {
        self.part(0..self.vocab(), &mut Solo::new())
    }

    fn vocab(&self) -> usize {
        self.logits[0].len()
    }

    fn part(&self, vocab: Range<usize>, collective: &mut impl Collective) -> Vec<Option<Chosen>> {
        let own = self.logits.iter().map(|logits| logits[vocab.clone()].to_vec()).collect();
        let mut sampler = Sampler::new(Sampleable::new(vocab, &sampleable()));
        sampler.sample(&self.rows, &mut Given(own), collective).unwrap()
    }
}

pub fn tokens(chosen: &[Option<Chosen>]) -> Vec<Option<TokenId>> {
    chosen.iter().map(|chosen| chosen.as_ref().map(|chosen| chosen.token)).collect()
}

/// Logits that nothing computed.
struct Given(Vec<Vec<f32>>);

impl Shard for Given {
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        Ok(&self.0[row])
    }
}

/// How a row's logits lie.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// A few likely tokens, as a model's.
    Steep,
    /// Thousands of tokens in any nucleus.
    Flat,
    /// Three values: every cut goes through equal tokens.
    Tied,
    /// A steep row with logits that are no numbers, or infinite downwards.
    Broken,
}

pub const SHAPES: [Shape; 4] = [Shape::Steep, Shape::Flat, Shape::Tied, Shape::Broken];

pub fn logits(shape: Shape, seed: u64) -> Vec<f32> {
    let even = |i: usize| (mix(seed << 32 | i as u64) >> 40) as f32 / (1 << 24) as f32;
    let one = |i: usize| match shape {
        Shape::Steep => 14.0 * even(i).powi(4) - 5.0,
        Shape::Flat => even(i),
        Shape::Tied => (even(i) * 3.0).floor(),
        Shape::Broken => match i % 11 {
            0 => f32::NAN,
            1 => f32::NEG_INFINITY,
            _ => 9.0 * even(i) * even(i),
        },
    };
    (0..VOCAB).map(one).collect()
}
