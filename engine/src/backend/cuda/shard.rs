//! The rank's logits, and the tokens that are chosen by them.

use super::CudaBackend;
use super::cut::COUNT_MAX;
use crate::backend::BackendError;
use crate::cuda::CudaError;
use crate::sample::{Candidate, Head, SampleRow, Sampleable, Shard, Weigher};
use flotilla_shared::activations::LOGIT_ROWS;

impl Shard for CudaBackend {
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        self.attempt(|s| {
            let width = s.share.vocab.len();
            if width == 0 {
                return Ok(());
            }
            let logits = s.a.logits.slice(row * width..(row + 1) * width);
            let into = s.row.as_mut_slice().map_err(CudaError::doing("read logits"))?;
            let copied = s.card.stream().memcpy_dtoh(&logits, &mut into[..width]);
            copied.map_err(CudaError::doing("read logits"))?;
            s.card.synchronize()
        });
        self.check()?;
        let row = self.row.as_slice().map_err(|error| BackendError(CudaError::from(error).to_string()))?;
        Ok(&row[..self.share.vocab.len()])
    }

    /// Copied together, and looked at on several of the host's threads.
    fn each<T: Send>(
        &mut self,
        rows: &[usize],
        work: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Result<Vec<T>, BackendError> {
        self.attempt(|s| {
            if rows.is_empty() {
                return Ok(());
            }
            s.host.fetch(rows, &s.a.logits, s.card.stream())?;
            s.card.synchronize()
        });
        self.check()?;
        self.host.each(rows, work).map_err(|error| BackendError(error.to_string()))
    }

    /// Those of the first turn of [`best`](Shard::best).
    fn begin_best(&mut self, rows: &[SampleRow]) {
        let rows = &rows[..rows.len().min(LOGIT_ROWS)];
        self.attempt(|s| match &mut s.kernels.sample {
            Some(kernels) if !rows.is_empty() => s.a.picks.begin(kernels, rows, &s.a.logits),
            _ => Ok(()),
        });
    }

    /// The sampleable tokens are those of the assignment, which the card knows from the start.
    fn best(&mut self, rows: &[SampleRow], _: &Sampleable) -> Result<Vec<Candidate>, BackendError> {
        let mut bests = Vec::new();
        for rows in rows.chunks(LOGIT_ROWS) {
            self.attempt(|s| {
                let Some(kernels) = &mut s.kernels.sample else {
                    bests.extend(rows.iter().map(|_| Candidate::NONE));
                    return Ok(());
                };
                bests.extend(s.a.picks.best(kernels, rows, &s.a.logits)?);
                Ok(())
            });
        }
        self.check()?;
        Ok(bests)
    }

    /// Rows of which the card has no room for what is asked are looked at in the host's memory.
    fn heads(&mut self, rows: &[(usize, usize)], sampleable: &Sampleable) -> Result<Vec<Head>, BackendError> {
        let mut heads = vec![None; rows.len()];
        let few: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].1 <= COUNT_MAX).collect();
        for few in few.chunks(LOGIT_ROWS) {
            let asked: Vec<(usize, usize)> = few.iter().map(|&at| rows[at]).collect();
            self.attempt(|s| {
                let Some(kernels) = &mut s.kernels.cut else { return Ok(()) };
                let found = kernels.likeliest(&asked, &s.a.logits)?;
                few.iter().zip(found).for_each(|(&at, head)| heads[at] = head);
                Ok(())
            });
        }
        let rest: Vec<usize> = (0..rows.len()).filter(|&at| heads[at].is_none()).collect();
        let logit_rows: Vec<usize> = rest.iter().map(|&at| rows[at].0).collect();
        let found = self.each(&logit_rows, |at, logits| Head::of(logits, sampleable, rows[rest[at]].1))?;
        rest.into_iter().zip(found).for_each(|(at, head)| heads[at] = Some(head));
        Ok(heads.into_iter().flatten().collect())
    }

    fn weights(
        &mut self,
        rows: &[(usize, Weigher, f32)],
        sampleable: &Sampleable,
    ) -> Result<Vec<u128>, BackendError> {
        let mut sums = vec![None; rows.len()];
        let finite: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].1.max().is_finite()).collect();
        for finite in finite.chunks(LOGIT_ROWS) {
            let asked: Vec<_> = finite.iter().map(|&at| rows[at]).collect();
            self.attempt(|s| {
                let Some(kernels) = &mut s.kernels.cut else { return Ok(()) };
                let found = kernels.weigh(&asked, &s.a.logits)?;
                finite.iter().zip(found).for_each(|(&at, sum)| sums[at] = Some(sum));
                Ok(())
            });
        }
        let rest: Vec<usize> = (0..rows.len()).filter(|&at| sums[at].is_none()).collect();
        let logit_rows: Vec<usize> = rest.iter().map(|&at| rows[at].0).collect();
        let found = self.each(&logit_rows, |at, logits| {
            let (_, weigher, floor) = rows[rest[at]];
            sampleable.weigh(logits, &weigher, floor)
        })?;
        rest.into_iter().zip(found).for_each(|(at, sum)| sums[at] = Some(sum));
        Ok(sums.into_iter().flatten().collect())
    }
}
