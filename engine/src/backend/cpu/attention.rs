//! Attention of a rank's heads: q, k, v from the normed stream, rotation, the cache, softmax with sinks
//! over the visible keys, and the projection back. A rank without heads contributes zeros.

use super::CpuBackend;
use super::dense::DenseRoom;
use super::kernels::{GROUP_MAX, Matrix, TileMut};
use crate::batch::Batch;
use flotilla_shared::tensor::LayerTensor;
use flotilla_shared::{LayerKind, ModelSpec, RankShare};
use std::ops::Range;

/// Activations of the rank's heads.
#[derive(Debug)]
pub struct Attention {
    /// f32 [T, nq/R, D]
    q: Vec<f32>,
    /// f32 [T, nk/R, D]
    k: Vec<f32>,
    v: Vec<f32>,
    /// f32 [T, nq/R, D]
    out: Vec<f32>,
    /// `out`, arranged for the product back.
    arranged: DenseRoom,
    /// f32 [nq/R]: the layer's sinks.
    sinks: Vec<f32>,
    /// nq/R · D and nk/R · D
    q_width: usize,
    kv_width: usize,
}

impl Attention {
    pub fn new(spec: &ModelSpec, share: &RankShare, rows: usize, room: &impl Fn(usize) -> DenseRoom) -> Self {
        let q_heads = spec.q_heads_of(&share.kv_heads).len();
        let (q_width, kv_width) = (q_heads * spec.head_dim, share.kv_heads.len() * spec.head_dim);
        Attention {
            q: vec![0.0; rows * q_width],
            k: vec![0.0; rows * kv_width],
            v: vec![0.0; rows * kv_width],
            out: vec![0.0; rows * q_width],
            arranged: room(q_width),
            sinks: vec![0.0; q_heads],
            q_width,
            kv_width,
        }
    }
}

/// The positions that a row sees: all up to its own, or the window's.
fn visible(kind: LayerKind, window: usize, position: usize) -> Range<usize> {
    match kind {
        LayerKind::Full => 0..position + 1,
        LayerKind::Window => (position + 1).saturating_sub(window)..position + 1,
    }
}

impl CpuBackend {
    /// q, k, v = W h + b; q and k rotated; k and v into the cache.
    pub(super) fn project_in(&mut self, layer: usize, batch: &Batch) {
        use LayerTensor::{KBias, KWeight, QBias, QWeight, VBias, VWeight};
        let (rows, hidden) = (batch.rows(), self.spec.hidden);
        if self.share.kv_heads.is_empty() {
            return;
        }
        let (kernels, weights) = (self.kernels, &self.weights);
        let h = Matrix::new(&self.h[..rows * hidden], rows, hidden);
        let h = self.normed.arrange(kernels, &self.threads, h);
        let Attention { q, k, v, q_width, kv_width, .. } = &mut self.attention;
        let parts =
            [(QWeight, QBias, q, *q_width), (KWeight, KBias, k, *kv_width), (VWeight, VBias, v, *kv_width)];
        for (weight, bias, out, width) in parts {
            let weight = weights.layer_dense(layer, weight, width, hidden);
            let bias = weights.layer_bf16(layer, bias);
            let out = TileMut::new(&mut out[..rows * width], rows, width);
            h.product(kernels, &self.threads, weight, Some(bias), out);
        }
        self.rotate_and_store(layer, batch);
    }

    fn rotate_and_store(&mut self, layer: usize, batch: &Batch) {
        let Attention { q, k, v, q_width, kv_width, .. } = &mut self.attention;
        for sequence in &batch.sequences {
            let table = batch.table(sequence, self.spec.layers[layer]);
            for row in sequence.rows.clone() {
                let (cos, sin) = self.rope.row(row);
                let k = &mut k[row * *kv_width..][..*kv_width];
                self.kernels.rope(&mut q[row * *q_width..][..*q_width], cos, sin);
                self.kernels.rope(k, cos, sin);
                let v = &v[row * *kv_width..][..*kv_width];
                self.kv.store(layer, table, batch.positions[row] as usize, k, v);
            }
        }
    }

    pub(super) fn attend_rows(&mut self, layer: usize, batch: &Batch) {
        let (kv_heads, head_dim) = (self.share.kv_heads.len(), self.spec.head_dim);
        if kv_heads == 0 {
            return;
        }
        let Attention { q, out, sinks, q_width, .. } = &mut self.attention;
        self.kernels.bf16_widen(self.weights.layer_bf16(layer, LayerTensor::Sinks), sinks);
        let (kind, window) = (self.spec.layers[layer], self.spec.window);
        let scale = (head_dim as f64).powf(-0.5) as f32;
        let group = self.spec.group();
        let (kernels, kv) = (self.kernels, &self.kv);
        for sequence in &batch.sequences {
            let table = batch.table(sequence, kind);
            let first = sequence.rows.start;
            let rows = first * *q_width..sequence.rows.end * *q_width;
            // One item is one row's query heads of one kv head: f32 [group, D].
            let item = group * head_dim;
            let q = &q[rows.clone()];
            self.threads.chunks(&mut out[rows], item, |index, out, scratch| {
                let (row, head) = (first + index / kv_heads, index % kv_heads);
                let positions = visible(kind, window, batch.positions[row] as usize);
                let q = q[index * item..][..item].chunks(GROUP_MAX * head_dim);
                let sinks = sinks[head * group..][..group].chunks(GROUP_MAX);
                for ((q, out), sinks) in q.zip(out.chunks_mut(GROUP_MAX * head_dim)).zip(sinks) {
                    let slabs = kv.slabs(layer, table, head, positions.clone());
                    kernels.attend_row(q, sinks, scale, slabs, out, scratch);
                }
            });
        }
    }

    /// y = Wₒ a (+ bₒ)
    pub(super) fn project_out(&mut self, layer: usize, batch: &Batch) -> &mut [f32] {
        let (rows, hidden) = (batch.rows(), self.spec.hidden);
        let y = &mut self.y[..rows * hidden];
        if self.share.kv_heads.is_empty() {
            y.fill(0.0);
            return y;
        }
        let width = self.attention.q_width;
        let weight = self.weights.layer_dense(layer, LayerTensor::OWeight, hidden, width);
        let bias = self.weights.layer_bf16(layer, LayerTensor::OBias);
        let bias = self.share.adds_output_bias().then_some(bias);
        let Attention { out, arranged, .. } = &mut self.attention;
        let out = Matrix::new(&out[..rows * width], rows, width);
        let out = arranged.arrange(self.kernels, &self.threads, out);
        out.product(self.kernels, &self.threads, weight, bias, TileMut::new(y, rows, hidden));
        y
    }
}

#[cfg(test)]
mod tests {
    use super::visible;
    use flotilla_shared::LayerKind;

    #[test]
    fn the_window_holds_its_own_key_and_those_before() {
        assert_eq!(visible(LayerKind::Full, 4, 9), 0..10);
        assert_eq!(visible(LayerKind::Window, 4, 9), 6..10);
        assert_eq!(visible(LayerKind::Window, 4, 3), 0..4);
        assert_eq!(visible(LayerKind::Window, 4, 0), 0..1);
    }
}
