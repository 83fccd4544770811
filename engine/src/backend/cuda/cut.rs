//! Launches `cut.cu`: what is to be known of rows of which not every token may be drawn. What is asked and what is found lie in
//! pinned memory of the machine, a copy each way.

use super::picks::pinned;
use super::sample::Ranges;
use crate::cuda::{Card, CudaError, Launcher, Source};
use crate::sample::{Head, Weigher};
use cudarc::driver::{CudaFunction, CudaSlice, LaunchConfig, PinnedHostSlice};
use flotilla_shared::TokenId;
use flotilla_shared::activations::LOGIT_ROWS;
use std::ops::Range;

/// As in cut.cu.
const LOOK_THREADS: u32 = 1024;
const WEIGH_THREADS: u32 = 256;
const ROOM: usize = 512;
const PART_TOKENS: usize = 8192;

/// Likeliest tokens that can be asked for: some may be equal to the last of them.
pub const COUNT_MAX: usize = ROOM / 2;

/// Words of a row: what is asked of it at most, and its likeliest tokens.
const ASKED_WORDS: usize = 5;
const LIKELY_WORDS: usize = 2 + 2 * ROOM;

pub fn source() -> Source {
    Source { name: "cut.cu", text: include_str!("cut.cu"), defines: vec![] }
}

/// The kernels, for one part of the vocabulary, and memory for [`LOGIT_ROWS`] rows.
#[derive(Debug)]
pub struct CutKernels {
    card: Card,
    launcher: Launcher,
    vocab: Range<usize>,
    ranges: Ranges,
    likeliest: CudaFunction,
    weigh: CudaFunction,
    asked: PinnedHostSlice<u32>,
    found: PinnedHostSlice<u32>,
    /// The same on the card.
    asked_there: CudaSlice<u32>,
    found_there: CudaSlice<u32>,
}

impl CutKernels {
    /// `vocab`: this rank's part, not empty. `sampleable`: ids that may be chosen, of the whole vocabulary.
    pub fn new(card: &Card, vocab: Range<usize>, sampleable: &[Range<TokenId>]) -> Result<Self, CudaError> {
        Self::compiled(card, &source(), vocab, sampleable)
    }

    /// From a source that may not be the file itself.
    pub fn compiled(
        card: &Card,
        source: &Source,
        vocab: Range<usize>,
        sampleable: &[Range<TokenId>],
    ) -> Result<Self, CudaError> {
        assert!(!vocab.is_empty() && vocab.end <= TokenId::MAX as usize - PART_TOKENS);
        let module = card.compile(source)?;
        let (asked, found) = (LOGIT_ROWS * ASKED_WORDS, LOGIT_ROWS * LIKELY_WORDS.max(2 * parts(&vocab)));
        Ok(CutKernels {
            card: card.clone(),
            launcher: card.launcher(),
            ranges: Ranges::upload(card, &vocab, sampleable)?,
            likeliest: module.kernel("likeliest")?,
            weigh: module.kernel("weigh")?,
            asked: pinned(card, asked)?,
            found: pinned(card, found)?,
            asked_there: card.zeros(asked)?,
            found_there: card.zeros(found)?,
            vocab,
        })
    }

    /// Of at most [`LOGIT_ROWS`] rows (which of the logits, how many tokens, at most [`COUNT_MAX`]); none of a row of which so many
    /// are equal that they have no room. logits: f32 [any, V]
    pub fn likeliest(
        &mut self,
        rows: &[(usize, usize)],
        logits: &CudaSlice<f32>,
    ) -> Result<Vec<Option<Head>>, CudaError> {
        assert!(rows.iter().all(|(row, count)| (1..=COUNT_MAX).contains(count) && self.has(*row, logits)));
        self.ask(rows.len(), rows.iter().flat_map(|(row, count)| [*row as u32, *count as u32]))?;
        let (first, width) = (self.vocab.start as u32, self.vocab.len() as u32);
        let mut launch = self.launcher.launch(&self.likeliest);
        launch.arg(&self.asked_there).arg(logits).arg(&self.ranges.words).arg(&self.ranges.count);
        launch.arg(&first).arg(&width).arg(&mut self.found_there);
        // SAFETY: the arguments are those of the kernel, and the rows are there.
        unsafe { launch.start(grid((rows.len() as u32, 1), LOOK_THREADS)) }?;
        let found = self.hear(rows.len() * LIKELY_WORDS)?;
        let head = |(words, (_, count)): (&[u32], &(usize, usize))| {
            let (all, taken) = (words[0] as usize, words[1] as usize);
            let tokens = words[2..].chunks(2).map(|pair| (f32::from_bits(pair[0]), pair[1]));
            (taken <= ROOM).then(|| Head::among(tokens.take(taken), *count, all))
        };
        Ok(found.chunks(LIKELY_WORDS).zip(rows).map(head).collect())
    }

    /// Σ weights of the part's tokens that may be chosen, for at most [`LOGIT_ROWS`] rows: which of the logits, how they weigh, and
    /// the least logit that counts. logits: f32 [any, V]
    ///
    /// # Panics
    /// If the highest logit of one of them is not finite.
    pub fn weigh(
        &mut self,
        rows: &[(usize, Weigher, f32)],
        logits: &CudaSlice<f32>,
    ) -> Result<Vec<u128>, CudaError> {
        assert!(rows.iter().all(|(row, weigher, _)| weigher.max().is_finite() && self.has(*row, logits)));
        let words = |(row, weigher, floor): &(usize, Weigher, f32)| {
            let (octaves, least) = (weigher.octaves().to_bits(), weigher.least(*floor));
            [*row as u32, weigher.max().to_bits(), least.to_bits(), octaves as u32, (octaves >> 32) as u32]
        };
        self.ask(rows.len(), rows.iter().flat_map(words))?;
        let (parts, width) = (parts(&self.vocab), self.vocab.len() as u32);
        let mut launch = self.launcher.launch(&self.weigh);
        launch.arg(&self.asked_there).arg(logits).arg(&self.ranges.words).arg(&self.ranges.count);
        launch.arg(&width).arg(&mut self.found_there);
        // SAFETY: the arguments are those of the kernel, and the rows are there.
        unsafe { launch.start(grid((parts as u32, rows.len() as u32), WEIGH_THREADS)) }?;
        let found = self.hear(rows.len() * parts * 2)?;
        let sum = |pair: &[u32]| u128::from(u64::from(pair[1]) << 32 | u64::from(pair[0]));
        Ok(found.chunks(parts * 2).map(|row| row.chunks(2).map(sum).sum()).collect())
    }

    fn has(&self, row: usize, logits: &CudaSlice<f32>) -> bool {
        (row + 1) * self.vocab.len() <= logits.len()
    }

    /// What was asked before has been waited for.
    fn ask(&mut self, rows: usize, words: impl Iterator<Item = u32>) -> Result<(), CudaError> {
        assert!(rows <= LOGIT_ROWS);
        let asked = self.asked.as_mut_slice().map_err(sampling())?;
        let len = asked.iter_mut().zip(words).map(|(to, word)| *to = word).count();
        let copied = self.card.stream().memcpy_htod(&asked[..len], &mut self.asked_there.slice_mut(..len));
        copied.map_err(sampling())
    }

    fn hear(&mut self, words: usize) -> Result<&[u32], CudaError> {
        let found = &mut self.found.as_mut_slice().map_err(sampling())?[..words];
        let copied = self.card.stream().memcpy_dtoh(&self.found_there.slice(..words), found);
        copied.map_err(sampling())?;
        self.card.synchronize()?;
        Ok(found)
    }
}

fn parts(vocab: &Range<usize>) -> usize {
    vocab.len().div_ceil(PART_TOKENS)
}

fn sampling() -> impl FnOnce(cudarc::driver::DriverError) -> CudaError {
    CudaError::doing("sample")
}

fn grid((x, y): (u32, u32), threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (x, y, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}
