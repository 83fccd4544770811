//! Launches `norm.cu`: embedding, x += y with RMSNorm, and what a stage hands on.
//! Letters as in [`crate::model`]; T is the launch's rows, of which those at and past `*rows` are skipped.

use super::dense::aligned;
use crate::cuda::{Card, CudaError, Launcher, Source};
use cudarc::driver::{CudaFunction, CudaView, CudaViewMut, LaunchConfig};
use std::ops::Range;

/// As in norm.cu.
const THREADS: u32 = 256;

pub fn source(hidden: usize) -> Source {
    Source { name: "norm.cu", text: include_str!("norm.cu"), defines: vec![("HIDDEN", hidden as i64)] }
}

/// The kernels for one H.
#[derive(Debug)]
pub struct NormKernels {
    launcher: Launcher,
    hidden: usize,
    eps: f32,
    embed: CudaFunction,
    add_norm_attention: CudaFunction,
    add_norm_mlp: CudaFunction,
    norm_final: CudaFunction,
    add: CudaFunction,
}

/// What is added to what, and the weight of the norm that follows. x, y: f32 [T, H]; weight: bf16 [H].
#[derive(Debug)]
pub struct Added<'a, 'b> {
    pub x: &'a mut CudaViewMut<'b, f32>,
    pub y: &'a CudaView<'b, f32>,
    pub weight: &'a CudaView<'b, u16>,
}

impl NormKernels {
    pub fn new(card: &Card, hidden: usize, eps: f32) -> Result<Self, CudaError> {
        Self::compiled(card, &source(hidden), hidden, eps)
    }

    /// From a source for this H, which may not be the file itself.
    pub fn compiled(card: &Card, source: &Source, hidden: usize, eps: f32) -> Result<Self, CudaError> {
        assert!(hidden > 0 && hidden.is_multiple_of(32), "H = {hidden} is not a multiple of 32");
        let module = card.compile(source)?;
        Ok(NormKernels {
            launcher: card.launcher(),
            hidden,
            eps,
            embed: module.kernel("embed")?,
            add_norm_attention: module.kernel("add_norm_attention")?,
            add_norm_mlp: module.kernel("add_norm_mlp")?,
            norm_final: module.kernel("norm_final")?,
            add: module.kernel("add")?,
        })
    }

    /// x = 0; y[t] = E[tokens[t]] where `vocab` has the token, else 0. table: bf16 [vocab, H], tokens: u32 [T],
    /// x, y: f32 [T, H]. With an empty `vocab` the table is not looked at.
    #[allow(clippy::too_many_arguments)]
    pub fn embed(
        &self,
        t: usize,
        rows: &CudaView<'_, u32>,
        tokens: &CudaView<'_, u32>,
        table: &CudaView<'_, u16>,
        vocab: Range<usize>,
        x: &mut CudaViewMut<'_, f32>,
        y: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        assert!(!rows.is_empty() && tokens.len() >= t);
        assert!(table.len() >= vocab.len() * self.hidden, "the table has fewer rows than {vocab:?}");
        assert!(x.len() >= t * self.hidden && y.len() >= t * self.hidden);
        assert!(aligned(table, 8, &self.launcher), "the table is read 8 bytes at a time");
        let (start, count) = (vocab.start as u32, vocab.len() as u32);
        let mut launch = self.launcher.launch(&self.embed);
        launch.early();
        launch.arg(rows).arg(tokens).arg(table).arg(&start).arg(&count).arg(x).arg(y);
        // SAFETY: the arguments are those of the kernel; every access is inside of what was asserted.
        unsafe { launch.start(blocks(t)) }?;
        Ok(())
    }

    /// x += y; h = norm(x). h: act [T, H].
    pub fn add_norm_attention(
        &self,
        t: usize,
        rows: &CudaView<'_, u32>,
        added: Added<'_, '_>,
        h: &mut CudaViewMut<'_, u16>,
    ) -> Result<(), CudaError> {
        let Added { x, y, weight } = self.checked(added, t);
        assert!(!rows.is_empty() && h.len() >= t * self.hidden);
        let mut launch = self.launcher.launch(&self.add_norm_attention);
        launch.early();
        launch.arg(rows).arg(x).arg(y).arg(weight).arg(&self.eps).arg(h);
        // SAFETY: the arguments are those of the kernel; every access is inside of what was asserted.
        unsafe { launch.start(blocks(t)) }?;
        Ok(())
    }

    /// x += y; h = norm(x), for the router, which makes the experts' f16 of it. h: f32 [T, H].
    pub fn add_norm_mlp(
        &self,
        t: usize,
        rows: &CudaView<'_, u32>,
        added: Added<'_, '_>,
        h: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        let Added { x, y, weight } = self.checked(added, t);
        assert!(!rows.is_empty() && h.len() >= t * self.hidden);
        let mut launch = self.launcher.launch(&self.add_norm_mlp);
        launch.early();
        launch.arg(rows).arg(x).arg(y).arg(weight).arg(&self.eps).arg(h);
        // SAFETY: the arguments are those of the kernel; every access is inside of what was asserted.
        unsafe { launch.start(blocks(t)) }?;
        Ok(())
    }

    /// For i < *logit_row_count, at most n: r = logit_rows[i]; x[r] += y[r]; h[i] = norm(x[r]).
    /// logit_rows: u32 [n], rising, each a row of x; h: act [n, H].
    pub fn norm_final(
        &self,
        n: usize,
        logit_row_count: &CudaView<'_, u32>,
        logit_rows: &CudaView<'_, u32>,
        added: Added<'_, '_>,
        h: &mut CudaViewMut<'_, u16>,
    ) -> Result<(), CudaError> {
        let Added { x, y, weight } = self.checked(added, 0);
        assert!(!logit_row_count.is_empty() && logit_rows.len() >= n && h.len() >= n * self.hidden);
        let mut launch = self.launcher.launch(&self.norm_final);
        launch.early();
        launch.arg(logit_row_count).arg(logit_rows).arg(x).arg(y).arg(weight).arg(&self.eps).arg(h);
        // SAFETY: the arguments are those of the kernel; the caller's logit rows are rows of x.
        unsafe { launch.start(blocks(n)) }?;
        Ok(())
    }

    /// y += x. x, y: f32 [T, H].
    pub fn add(
        &self,
        t: usize,
        rows: &CudaView<'_, u32>,
        x: &CudaView<'_, f32>,
        y: &mut CudaViewMut<'_, f32>,
    ) -> Result<(), CudaError> {
        assert!(!rows.is_empty() && x.len() >= t * self.hidden && y.len() >= t * self.hidden);
        assert!(aligned(x, 16, &self.launcher), "x is read 16 bytes at a time");
        let mut launch = self.launcher.launch(&self.add);
        launch.early();
        launch.arg(rows).arg(x).arg(y);
        // SAFETY: the arguments are those of the kernel; every access is inside of what was asserted.
        unsafe { launch.start(blocks(t)) }?;
        Ok(())
    }

    fn checked<'a, 'b>(&self, added: Added<'a, 'b>, t: usize) -> Added<'a, 'b> {
        assert!(added.x.len() >= t * self.hidden && added.y.len() >= t * self.hidden);
        assert_eq!(added.weight.len(), self.hidden);
        assert!(aligned(added.y, 16, &self.launcher), "y is read 16 bytes at a time");
        assert!(aligned(added.weight, 8, &self.launcher), "weights are read 8 bytes at a time");
        added
    }
}

fn blocks(count: usize) -> LaunchConfig {
    assert!(count > 0, "a launch of no rows");
    LaunchConfig { grid_dim: (count as u32, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 }
}
