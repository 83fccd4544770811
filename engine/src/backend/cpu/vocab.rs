//! The two ends of the model, cut by rows of the vocabulary: embedding and unembedding.

use super::CpuBackend;
use super::kernels::{Matrix, TileMut};
use crate::batch::Batch;
use flotilla_shared::tensor::TensorId;

impl CpuBackend {
    pub(super) fn embed_rows(&mut self, batch: &Batch) -> &mut [f32] {
        let hidden = self.spec.hidden;
        let filled = batch.rows() * hidden;
        self.x[..filled].fill(0.0);
        let table = self.weights.bf16(TensorId::Embed);
        for (token, y) in batch.tokens.iter().zip(self.y.chunks_exact_mut(hidden)) {
            match (*token as usize).checked_sub(self.share.vocab.start) {
                Some(row) if row < self.share.vocab.len() => {
                    self.kernels.bf16_widen(&table[row * hidden..][..hidden], y);
                }
                _ => y.fill(0.0),
            }
        }
        &mut self.y[..filled]
    }

    pub(super) fn unembed_rows(&mut self, batch: &Batch) {
        let (rows, width, hidden) = (batch.logit_rows.len(), self.share.vocab.len(), self.spec.hidden);
        self.logits.resize(rows * width, 0.0);
        if width == 0 {
            // What is not held was not made int8 either: h would be arranged for others than it is.
            return;
        }
        let weights = self.weights.dense(TensorId::Unembed, width, hidden);
        let h = Matrix::new(&self.h[..rows * hidden], rows, hidden);
        let h = self.normed.arrange(self.kernels, &self.threads, h);
        let logits = TileMut::new(&mut self.logits, rows, width);
        h.product(self.kernels, &self.threads, weights, None, logits);
    }
}
