//! Attention of a rank's heads but for the attention itself (`attend.rs`): q, k, v from the normed stream, rotation, the
//! cache, and the projection back. A rank without heads contributes zeros.

use super::CpuBackend;
use super::attend::AttendWork;
use super::dense::DenseRoom;
use super::kernels::{Matrix, TileMut};
use crate::batch::Batch;
use flotilla_shared::tensor::LayerTensor;
use flotilla_shared::{ModelSpec, RankShare};

/// Activations of the rank's heads.
#[derive(Debug)]
pub struct Attention {
    /// f32 [T, nq/R, D]
    pub(super) q: Vec<f32>,
    /// f32 [T, nk/R, D]
    k: Vec<f32>,
    v: Vec<f32>,
    /// f32 [T, nq/R, D]
    pub(super) out: Vec<f32>,
    /// `out`, arranged for the product back.
    arranged: DenseRoom,
    /// f32 [nq/R]: the layer's sinks.
    pub(super) sinks: Vec<f32>,
    /// nq/R · D and nk/R · D
    pub(super) q_width: usize,
    kv_width: usize,
    pub(super) work: AttendWork,
    /// For which the work is cut.
    pub(super) threads: usize,
}

impl Attention {
    pub fn new(
        spec: &ModelSpec,
        share: &RankShare,
        rows: usize,
        threads: usize,
        room: &impl Fn(usize) -> DenseRoom,
    ) -> Self {
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
            work: AttendWork::default(),
            threads,
        }
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
        let (rows, kernels, rope) = (batch.rows(), self.kernels, &self.rope);
        let Attention { q, k, v, q_width, kv_width, .. } = &mut self.attention;
        for (x, width) in [(q, *q_width), (&mut *k, *kv_width)] {
            self.threads.rows(rows, &mut x[..rows * width], width, |rows, x| {
                for (row, x) in rows.zip(x.chunks_exact_mut(width)) {
                    let (cos, sin) = rope.row(row);
                    kernels.rope(x, cos, sin);
                }
            });
        }
        let (kv, kind, d) = (self.kv.heads(layer), self.spec.layers[layer], self.spec.head_dim);
        let (k, v, kv_width) = (&*k, &*v, *kv_width);
        self.threads.shared(rows, self.share.kv_heads.len(), |own| {
            for (head, sequence) in own.flat_map(|head| batch.sequences.iter().map(move |it| (head, it))) {
                let table = batch.table(sequence, kind);
                for row in sequence.rows.clone() {
                    let [k, v] = [k, v].map(|x| &x[row * kv_width + head * d..][..d]);
                    // SAFETY: each head is taken once.
                    unsafe { kv.store(head, table, batch.positions[row] as usize, k, v) };
                }
            }
        });
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
