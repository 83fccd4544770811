//! Launches `sample.cu`: the best token of this rank's part of the vocabulary, per sampled row.

use crate::cuda::{Card, CudaError, Launcher, Source};
use crate::sample::SampleRow;
use cudarc::driver::{CudaFunction, CudaSlice, CudaView, CudaViewMut, LaunchConfig};
use flotilla_shared::TokenId;
use std::ops::Range;

/// As in sample.cu.
const THREADS: u32 = 256;
const PART_TOKENS: usize = 2048;

pub fn source() -> Source {
    Source { name: "sample.cu", text: include_str!("sample.cu"), defines: vec![] }
}

/// Words of a row as the kernel reads it.
pub const ROW_WORDS: usize = 5;

/// A row as the kernel reads it: what to choose by, and which row of the logits.
pub fn row_words(row: &SampleRow) -> [u32; ROW_WORDS] {
    let seed = row.sampling.seed;
    [row.sampling.temperature.to_bits(), seed as u32, (seed >> 32) as u32, row.position, row.logit_row as u32]
}

/// The kernels, for one part of the vocabulary.
#[derive(Debug)]
pub struct SampleKernels {
    launcher: Launcher,
    vocab: Range<usize>,
    rows_max: usize,
    ranges: Ranges,
    /// (score, token) [rows_max, parts]
    parts: CudaSlice<u32>,
    best_of_part: CudaFunction,
    best_of_row: CudaFunction,
}

impl SampleKernels {
    /// `vocab`: this rank's part, not empty. `sampleable`: ids that may be chosen, of the whole vocabulary.
    pub fn new(
        card: &Card,
        vocab: Range<usize>,
        sampleable: &[Range<TokenId>],
        rows_max: usize,
    ) -> Result<Self, CudaError> {
        Self::compiled(card, &source(), vocab, sampleable, rows_max)
    }

    /// From a source that may not be the file itself.
    pub fn compiled(
        card: &Card,
        source: &Source,
        vocab: Range<usize>,
        sampleable: &[Range<TokenId>],
        rows_max: usize,
    ) -> Result<Self, CudaError> {
        assert!(!vocab.is_empty() && rows_max > 0 && vocab.end <= TokenId::MAX as usize - PART_TOKENS);
        let module = card.compile(source)?;
        Ok(SampleKernels {
            launcher: card.launcher(),
            rows_max,
            ranges: Ranges::upload(card, &vocab, sampleable)?,
            parts: card.zeros(rows_max * vocab.len().div_ceil(PART_TOKENS) * 2)?,
            vocab,
            best_of_part: module.kernel("best_of_part")?,
            best_of_row: module.kernel("best_of_row")?,
        })
    }

    /// The best of the first *row_count of n rows. rows: n times [`row_words`]; logits: f32 [any, V]; bests:
    /// u32 [n][2], the bits of a score and a token; the token is `TokenId::MAX` where nothing could be chosen.
    pub fn best(
        &mut self,
        n: usize,
        row_count: &CudaView<'_, u32>,
        rows: &CudaView<'_, u32>,
        logits: &CudaView<'_, f32>,
        bests: &mut CudaViewMut<'_, u32>,
    ) -> Result<(), CudaError> {
        assert!(n > 0 && n <= self.rows_max && !row_count.is_empty());
        assert!(rows.len() >= n * ROW_WORDS && bests.len() >= n * 2 && logits.len() >= self.vocab.len());
        let (start, count) = (self.vocab.start as u32, self.vocab.len() as u32);
        let part_count = count.div_ceil(PART_TOKENS as u32);

        let mut launch = self.launcher.launch(&self.best_of_part);
        launch.arg(row_count).arg(rows).arg(logits).arg(&self.ranges.words).arg(&self.ranges.count);
        launch.arg(&start).arg(&count).arg(&mut self.parts);
        // SAFETY: the arguments are those of the kernel; that the rows' logit rows exist is the caller's word.
        unsafe { launch.start(grid(part_count, n as u32)) }?;

        let mut launch = self.launcher.launch(&self.best_of_row);
        launch.early();
        launch.arg(row_count).arg(&self.parts).arg(&part_count).arg(bests);
        // SAFETY: the arguments are those of the kernel; it reads what the first launch has written.
        unsafe { launch.start(grid(n as u32, 1)) }?;
        Ok(())
    }
}

/// What may be chosen of a part of the vocabulary, on a card.
#[derive(Debug)]
pub(super) struct Ranges {
    /// u32 [count][2]: [first, last) of each range, counted from the part's start.
    pub words: CudaSlice<u32>,
    pub count: u32,
}

impl Ranges {
    /// `sampleable`: ids that may be chosen, of the whole vocabulary.
    pub fn upload(
        card: &Card,
        vocab: &Range<usize>,
        sampleable: &[Range<TokenId>],
    ) -> Result<Ranges, CudaError> {
        let own = |ids: &Range<TokenId>| vocab.start.max(ids.start as usize)..vocab.end.min(ids.end as usize);
        let own = sampleable.iter().map(own).filter(|ids| !ids.is_empty());
        let words = own.flat_map(|ids| [ids.start - vocab.start, ids.end - vocab.start]).map(|id| id as u32);
        let mut words: Vec<u32> = words.collect();
        let count = words.len() as u32 / 2;
        if words.is_empty() {
            // Memory of no bytes cannot be taken.
            words = vec![0, 0];
        }
        Ok(Ranges { words: card.upload(&words)?, count })
    }
}

fn grid(x: u32, y: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (x, y, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}
