//! The rank's logits, and the tokens that are chosen by them.

use super::CudaBackend;
use crate::backend::BackendError;
use crate::cuda::CudaError;
use crate::sample::{Candidate, SampleRow, Sampleable, Shard};
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

    /// The sampleable tokens are those of the assignment, which the card knows from the start. Rows whose logits
    /// are changed before the choice, or whose tokens are cut, are looked at in the host's memory instead.
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
}
