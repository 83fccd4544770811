//! Sums over a part of the keys, and how parts become one: in rising order of their positions, with the same operations
//! wherever it is done, so that it does not matter who summed which.

use super::Simd;
use super::room::Room;
use super::softmax::weight;
use crate::backend::cpu::kernels::Kernels;
use std::f32::consts::LOG2_E;

/// f32 out [M, D], not divided; m [M], in powers of two; l [M].
#[derive(Clone, Copy, Debug)]
pub struct PartShape {
    rows: usize,
    head_dim: usize,
}

impl PartShape {
    pub fn new(rows: usize, head_dim: usize) -> PartShape {
        PartShape { rows, head_dim }
    }

    pub fn len(&self) -> usize {
        self.rows * (self.head_dim + 2)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// (out, m, l)
    pub(super) fn split<'a>(&self, part: &'a mut [f32]) -> (&'a mut [f32], &'a mut [f32], &'a mut [f32]) {
        let (out, rest) = part.split_at_mut(self.rows * self.head_dim);
        let (m, l) = rest.split_at_mut(self.rows);
        (out, m, l)
    }

    /// One row of a part: (out, m, l).
    fn row<'a>(&self, part: &'a [f32], row: usize) -> (&'a [f32], f32, f32) {
        let state = self.rows * self.head_dim;
        (&part[row * self.head_dim..][..self.head_dim], part[state + row], part[state + self.rows + row])
    }
}

/// What was summed in `room` joins `part`, whose m is −∞ where nothing is in it yet.
#[inline(always)]
pub(super) fn add<S: Simd>(s: S, shape: PartShape, part: &mut [f32], room: &Room<'_>) {
    let (out, m, l) = shape.split(part);
    for row in 0..shape.rows {
        // SAFETY: a row has as many sums as the widest instruction set has lanes.
        let sum = s.sum(unsafe { s.load(room.lanes(row).as_ptr()) });
        let values = &room.out[row * room.width..][..shape.head_dim];
        let to = &mut out[row * shape.head_dim..][..shape.head_dim];
        join(to, &mut m[row], &mut l[row], (values, room.m[row], sum));
    }
}

/// (out, m, l) and another such, to the scale of the larger m.
#[inline(always)]
fn join(out: &mut [f32], m: &mut f32, l: &mut f32, (other, other_m, other_l): (&[f32], f32, f32)) {
    let (before, top) = (*m, m.max(other_m));
    if before == f32::NEG_INFINITY {
        out.copy_from_slice(other);
        (*m, *l) = (other_m, other_l);
    } else if other_m > f32::NEG_INFINITY {
        let (a, b) = (weight(before, top), weight(other_m, top));
        out.iter_mut().zip(other).for_each(|(out, other)| *out = *out * a + other * b);
        (*m, *l) = (top, *l * a + other_l * b);
    }
}

impl Kernels {
    /// out[g] = Σ parts / (Σ l + the sink's), for the query heads of one token.
    ///
    /// out: f32 [G, D]; sinks: f32 [G], −∞ for none (then some key was seen). Parts of the same token in rising order,
    /// each with its shape; `row` is the token's first in them.
    pub fn attend_finish<'p>(
        &self,
        out: &mut [f32],
        sinks: &[f32],
        shape: PartShape,
        row: usize,
        parts: impl Iterator<Item = &'p [f32]> + Clone,
    ) {
        assert_eq!(out.len(), sinks.len() * shape.head_dim);
        for (g, (out, sink)) in out.chunks_exact_mut(shape.head_dim).zip(sinks).enumerate() {
            let (mut m, mut l) = (f32::NEG_INFINITY, 0.0);
            for part in parts.clone() {
                join(out, &mut m, &mut l, shape.row(part, row + g));
            }
            let sink = sink * LOG2_E;
            let top = m.max(sink);
            let share = weight(m, top) / (l * weight(m, top) + weight(sink, top));
            out.iter_mut().for_each(|out| *out *= share);
        }
    }
}
