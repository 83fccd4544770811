//! Attention over a cache of one kv head with eight query heads of 64, as the models have it: one row at a depth (of the
//! read rate), and chunks of a prompt (of the FMA peak), in f16 and f32.

use super::{best, huge};
use flotilla_engine::backend::cpu::kernels::*;
use std::hint::black_box;

const D: usize = 64;
const GROUP: usize = 8;
/// Keys and values of a block.
const BLOCK: usize = 2 * KV_BLOCK * D;
/// Bytes of cache to walk through, more than any cache of the processor's own that it might have alone.
const CACHE_BYTES: usize = 512 << 20;

pub fn attend(kernels: Kernels, read: f64, fma: f64) {
    decode::<u16>("f16", kernels, read);
    decode::<f32>("f32", kernels, read);
    prefill::<u16>("f16", kernels, fma);
    prefill::<f32>("f32", kernels, fma);
}

/// Every row has keys of its own, so that none is found in the processor's caches.
fn decode<E: KvElement>(name: &str, kernels: Kernels, read: f64) {
    let memory = huge(CACHE_BYTES);
    let cache: &[E] = bytemuck::cast_slice(&memory);
    for keys in [512, 2048, 8192, 32768] {
        let len = keys / KV_BLOCK * BLOCK;
        let rows = cache.len() / len;
        let seconds = best(rows, || {
            for own in cache.chunks_exact(len) {
                run::<E>(kernels, own, 1, keys - 1, usize::MAX);
            }
        });
        let rate = size_of::<E>() as f64 * len as f64 / seconds / 1e9;
        println!("  attend {name}, 1 row, {keys:5} keys: {rate:6.2} GB/s of KV ({:.2} of read)", rate / read);
    }
}

/// A prompt's last 512 tokens, and a window of 128.
fn prefill<E: KvElement>(name: &str, kernels: Kernels, fma: f64) {
    const TOKENS: usize = 512;
    let memory = huge(8192 / KV_BLOCK * BLOCK * size_of::<E>());
    let cache: &[E] = bytemuck::cast_slice(&memory);
    for (keys, window) in [(512, usize::MAX), (2048, usize::MAX), (8192, usize::MAX), (2048, 128)] {
        let seconds = best(1, || run::<E>(kernels, cache, TOKENS, keys - TOKENS, window));
        let seen: usize = (keys - TOKENS..keys).map(|position| (position + 1).min(window)).sum();
        let rate = (seen * GROUP * 2 * D) as f64 / seconds / 1e9;
        let kind = if window == usize::MAX { "" } else { ", window 128" };
        println!(
            "  attend {name}, {TOKENS} rows to {keys:4} keys{kind}: {rate:6.1} GMAC/s ({:.2} of peak)",
            rate / fma
        );
    }
}

/// Tokens at `position` and on, 16 at once.
fn run<E: KvElement>(kernels: Kernels, cache: &[E], tokens: usize, position: usize, window: usize) {
    thread_local! {
        static ROOM: std::cell::RefCell<(Scratch, Vec<f32>, Vec<f32>)> = std::cell::RefCell::default();
    }
    let q: Vec<f32> = (0..tokens * GROUP * D).map(|i| (i % 37) as f32 / 37.0 - 0.5).collect();
    let block = |block: usize| {
        let (keys, values) = cache[block * BLOCK..][..BLOCK].split_at(BLOCK / 2);
        KvBlock { keys, values }
    };
    ROOM.with_borrow_mut(|(scratch, part, out)| {
        out.resize(GROUP * D, 0.0);
        for first in (0..tokens).step_by(16) {
            let (stride, count) = (GROUP * D, 16.min(tokens - first));
            let queries = Queries {
                q: &q[first * stride..],
                stride,
                tokens: count,
                group: GROUP,
                head_dim: D,
                position: position + first,
                window,
                scale: 0.125,
            };
            let shape = PartShape::new(queries.rows(), D);
            part.resize(shape.len(), 0.0);
            kernels.attend(&queries, 0..usize::MAX, &block, part, scratch);
            for token in 0..count {
                let parts = [part.as_slice()].into_iter();
                kernels.attend_finish(out, &[0.1; GROUP], shape, token * GROUP, parts);
            }
            black_box(&out);
        }
    });
}
