//! The kernels beside what the memory gives, in turn, so that what disturbs one disturbs all.

use super::median;
use anyhow::{Context, Result};
use flotilla_engine::backend::cpu::kernels::Precision;
use flotilla_engine::backend::cpu::measure::Bench;
use serde::Serialize;

/// More than the last cache of any processor of today holds.
const BYTES: usize = 1 << 30;
const TOKENS: [usize; 5] = [1, 2, 4, 8, 64];

/// Rates in bytes of weights a second.
#[derive(Debug, Serialize)]
pub struct KernelRates {
    pub isa: String,
    pub read_huge: f64,
    pub read_small: f64,
    pub kernels: Vec<KernelRate>,
}

#[derive(Debug, Serialize)]
pub struct KernelRate {
    pub weights: &'static str,
    pub activations: String,
    pub tokens: usize,
    pub bytes_per_second: f64,
}

pub fn measure(threads: usize, rounds: usize) -> Result<KernelRates> {
    let memory = |huge| Bench::new(threads, BYTES, huge).context("cannot take memory to measure with");
    let small = {
        let bench = memory(false)?;
        median((0..rounds).map(|_| bench.read()).collect())
    };
    let bench = memory(true)?;
    let kinds = [None, Some(Precision::TwoPlanes), Some(Precision::OnePlane), Some(Precision::F32)];
    let cases: Vec<_> = kinds.iter().flat_map(|kind| TOKENS.map(|tokens| (*kind, tokens))).collect();
    let (mut reads, mut rates) = (Vec::new(), vec![Vec::new(); cases.len()]);
    for _ in 0..rounds {
        for ((kind, tokens), rates) in cases.iter().zip(&mut rates) {
            reads.push(bench.read());
            rates.push(kind.map_or_else(|| bench.bf16(*tokens), |precision| bench.mxfp4(precision, *tokens)));
        }
    }
    let kernels = cases.into_iter().zip(rates).map(|((kind, tokens), rates)| KernelRate {
        weights: if kind.is_some() { "MXFP4" } else { "bf16" },
        activations: kind.unwrap_or(Precision::F32).to_string(),
        tokens,
        bytes_per_second: median(rates),
    });
    Ok(KernelRates {
        isa: format!("{:?}", bench.isa()).to_lowercase(),
        read_huge: median(reads),
        read_small: small,
        kernels: kernels.collect(),
    })
}
