//! Dense products: q, k, v, the projection back, and the unembedding; with bf16 weights as published, or with int8 made of
//! them at load. What is arranged of the activations is arranged once for all that read them.

use super::kernels::{
    Activations, GroupedInt8, Input, InputBuffer, Kernels, Matrix, Precision, TILE, TileMut, Write,
};
use super::threads::Threads;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// How dense weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DenseWidth {
    /// As published.
    #[default]
    Bf16,
    /// Half the bytes, rounded: blocks of 32 with a scale.
    Int8,
}

impl fmt::Display for DenseWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == DenseWidth::Bf16 { "bf16" } else { "int8" })
    }
}

impl FromStr for DenseWidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = [DenseWidth::Bf16, DenseWidth::Int8].into_iter().find(|width| width.to_string() == text);
        found.ok_or_else(|| format!("expected bf16 or int8, found {text:?}"))
    }
}

/// One matrix W [N, K].
#[derive(Clone, Copy, Debug)]
pub enum DenseWeights<'a> {
    Bf16(Matrix<'a, u16>),
    Int8(GroupedInt8<'a>),
}

/// Memory for activations of one width, arranged for products.
#[derive(Debug)]
pub struct DenseRoom {
    buffer: InputBuffer,
    /// With int8 weights only.
    planes: Option<Activations>,
    /// 0, 1, 2 …
    ids: Vec<u32>,
}

/// Activations x [T, K], arranged.
pub struct DenseInput<'a> {
    floats: Option<Input<'a>>,
    planes: Option<(&'a Activations, &'a [u32])>,
}

impl DenseRoom {
    pub fn new(width: DenseWidth, precision: Precision, rows: usize, columns: usize) -> DenseRoom {
        let int8 = width == DenseWidth::Int8 && can_be_int8(columns);
        DenseRoom {
            buffer: InputBuffer::with_room(if int8 { 0 } else { rows }, columns),
            planes: int8.then(|| Activations::with_room(precision, rows, columns)),
            ids: (0..rows as u32).collect(),
        }
    }

    /// Arranges x [T, K], which has as many columns as the room.
    pub fn arrange<'a>(
        &'a mut self,
        kernels: Kernels,
        threads: &Threads,
        x: Matrix<'a, f32>,
    ) -> DenseInput<'a> {
        let Some(planes) = &mut self.planes else {
            let over = |out: &mut [f32], width, arrange: &(dyn Fn(Range<usize>, &mut [f32]) + Sync)| {
                threads.rows(x.rows(), out, width, arrange);
            };
            return DenseInput {
                floats: Some(kernels.bf16_input_over(x, &mut self.buffer, over)),
                planes: None,
            };
        };
        let shared = planes.shared();
        threads.ranges(x.rows(), |rows, _| {
            for row in rows {
                // SAFETY: each row is taken once.
                unsafe { shared.set(kernels, row, 0, x.row(row)) }
            }
        });
        DenseInput { floats: None, planes: Some((planes, &self.ids[..x.rows()])) }
    }
}

/// Whether a matrix with so many inputs has whole blocks.
pub fn can_be_int8(columns: usize) -> bool {
    columns > 0 && columns.is_multiple_of(32)
}

/// Columns that one int8 product makes.
const COLUMNS: usize = 96;

impl DenseInput<'_> {
    /// y = W x (+ bias). W: [N, K], bias: bf16 [N], y: f32 [T, N], whole.
    pub fn product(
        &self,
        kernels: Kernels,
        threads: &Threads,
        weights: DenseWeights<'_>,
        bias: Option<&[u16]>,
        y: TileMut<'_>,
    ) {
        match (weights, &self.floats, &self.planes) {
            (DenseWeights::Bf16(weights), Some(x), _) => threads.columns(y, |tile, scratch| {
                kernels.bf16_product(weights, x, bias, tile, Write::Set, scratch);
            }),
            (DenseWeights::Int8(weights), _, Some((x, ids))) => threads.columns(y, |tile, scratch| {
                for mut tile in tile.chunks(COLUMNS) {
                    let columns = tile.columns();
                    let mut b = [0.0; COLUMNS];
                    let b = &mut b[..columns.len()];
                    if let Some(bias) = bias {
                        kernels.bf16_widen(&bias[columns.clone()], b);
                    }
                    for (part, ids) in ids.chunks(TILE / COLUMNS).enumerate() {
                        let out = kernels.int8_product(weights, x, ids, columns.clone(), scratch);
                        for (token, out) in out.chunks_exact_mut(columns.len()).enumerate() {
                            kernels.add_assign(out, b);
                            tile.token_mut(part * (TILE / COLUMNS) + token).copy_from_slice(out);
                        }
                    }
                }
            }),
            _ => unreachable!("weights and activations are arranged by the same width"),
        }
    }
}
