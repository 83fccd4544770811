//! What sampling is told and what it says, a copy each way: both lie in pinned memory of the machine, so that no copy
//! goes by memory of the driver's.

use super::sample::{ROW_WORDS, SampleKernels, row_words};
use crate::cuda::{Card, CudaError};
use crate::sample::{Candidate, SampleRow};
use cudarc::driver::{CudaSlice, PinnedHostSlice, sys};
use flotilla_shared::activations::LOGIT_ROWS;

/// Words before the rows, of which the first is their number: 16 bytes times four.
const HEAD_WORDS: usize = 16;
const ASKED_WORDS: usize = HEAD_WORDS + LOGIT_ROWS * ROW_WORDS;
const FOUND_WORDS: usize = LOGIT_ROWS * 2;

pub(super) struct Picks {
    card: Card,
    asked: PinnedHostSlice<u32>,
    found: PinnedHostSlice<u32>,
    /// The same on the card.
    rows: CudaSlice<u32>,
    bests: CudaSlice<u32>,
    /// Rows that the card was asked about in this step, and whose bests nobody has read yet.
    begun: usize,
}

impl Picks {
    pub(super) fn new(card: &Card) -> Result<Picks, CudaError> {
        Ok(Picks {
            card: card.clone(),
            asked: pinned(card, ASKED_WORDS)?,
            found: pinned(card, FOUND_WORDS)?,
            rows: card.zeros(ASKED_WORDS)?,
            bests: card.zeros(FOUND_WORDS)?,
            begun: 0,
        })
    }

    /// What was begun is of a step that is over, and was waited for at its end.
    pub(super) fn forget(&mut self) {
        self.begun = 0;
    }

    /// Asks the card for the best of each of at most [`LOGIT_ROWS`] rows, and does not wait for them. logits: f32 [n, V]
    pub(super) fn begin(
        &mut self,
        kernels: &mut SampleKernels,
        rows: &[SampleRow],
        logits: &CudaSlice<f32>,
    ) -> Result<(), CudaError> {
        let sampling = || CudaError::doing("sample");
        let (stream, n) = (self.card.stream(), rows.len());
        let words = HEAD_WORDS + n * ROW_WORDS;
        if self.begun > 0 {
            // The card may still read what it was asked, and nobody wants to know any more.
            self.card.synchronize()?;
        }
        let asked = &mut self.asked.as_mut_slice().map_err(sampling())?[..words];
        asked[0] = n as u32;
        for (to, row) in asked[HEAD_WORDS..].chunks_mut(ROW_WORDS).zip(rows) {
            to.copy_from_slice(&row_words(row));
        }
        stream.memcpy_htod(&*asked, &mut self.rows.slice_mut(..words)).map_err(sampling())?;
        let (count, asked) = (self.rows.slice(..1), self.rows.slice(HEAD_WORDS..words));
        kernels.best(n, &count, &asked, &logits.as_view(), &mut self.bests.as_view_mut())?;
        let found = &mut self.found.as_mut_slice().map_err(sampling())?[..n * 2];
        stream.memcpy_dtoh(&self.bests.slice(..n * 2), found).map_err(sampling())?;
        self.begun = n;
        Ok(())
    }

    /// The best of each of at most [`LOGIT_ROWS`] rows: those that were begun, or others. logits: f32 [n, V]
    pub(super) fn best(
        &mut self,
        kernels: &mut SampleKernels,
        rows: &[SampleRow],
        logits: &CudaSlice<f32>,
    ) -> Result<Vec<Candidate>, CudaError> {
        if !self.has_begun(rows)? {
            self.begin(kernels, rows, logits)?;
        }
        self.card.synchronize()?;
        self.begun = 0;
        let found = &self.found.as_slice().map_err(CudaError::doing("sample"))?[..rows.len() * 2];
        let candidate = |pair: &[u32]| Candidate { score: f32::from_bits(pair[0]), token: pair[1] };
        Ok(found.chunks(2).map(candidate).collect())
    }

    /// Whether it is these rows that the card was asked about last.
    fn has_begun(&self, rows: &[SampleRow]) -> Result<bool, CudaError> {
        let asked = &self.asked.as_slice().map_err(CudaError::doing("sample"))?[HEAD_WORDS..];
        let mut pairs = asked.chunks(ROW_WORDS).zip(rows);
        Ok(self.begun == rows.len() && pairs.all(|(asked, row)| *asked == row_words(row)))
    }
}

/// Words of the machine's memory that a card copies from and to by itself.
pub(super) fn pinned(card: &Card, words: usize) -> Result<PinnedHostSlice<u32>, CudaError> {
    // SAFETY: what is read of it has been written before: what is asked by `best`, what is found by the card.
    let words =
        unsafe { card.stream().context().alloc_pinned_with_flags(words, sys::CU_MEMHOSTALLOC_PORTABLE) };
    words.map_err(CudaError::doing("take pinned memory for sampling"))
}
