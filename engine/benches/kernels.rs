//! How near the kernels come to what the machine can do, on one thread: bytes of weights read a second
//! beside the read rate of the same run, multiply-adds beside the FMA peak of the same run.
//!
//!   cargo bench -p flotilla-engine --bench kernels [-- ISA | T | bf16 | mxfp4 | attend ...]
//!
//! Each number is the best of several passes, in time of the thread, over weights that no cache holds. On a shared
//! machine the ratios to the rates measured beside them say more than the rates.

#[path = "kernels/attend.rs"]
mod attend;

use flotilla_engine::backend::cpu::kernels::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

const K: usize = 2880;
const N: usize = 5760;
const TOKENS: [usize; 8] = [1, 2, 4, 8, 12, 16, 64, 512];
/// Matrices of one kind, passed through in turn.
const BF16_COUNT: usize = 6;
const MXFP4_COUNT: usize = 16;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted = |of: &[String], word: String| words.iter().all(|w| !of.contains(w)) || words.contains(&word);
    let isas = Isa::ALL.map(|isa| format!("{isa:?}"));
    let counts = TOKENS.map(|t| t.to_string());
    let kinds = ["bf16", "int8", "int8x1", "mxfp4", "mxfp4x2", "mxfp4x1", "attend"].map(String::from);

    let memory = huge(BF16_COUNT * N * K * 2);
    println!("weights [{N}, {K}], one thread");
    for isa in Isa::available().filter(|isa| wanted(&isas, format!("{isa:?}"))) {
        let kernels = Kernels::new(isa);
        let (read, fma) = (read_rate(&memory), fma_rate(kernels));
        println!("\n{isa:?}: reads {read:.1} GB/s, multiplies and adds {fma:.1} G/s");
        for kind in &kinds[..6] {
            for tokens in TOKENS.into_iter().filter(|t| wanted(&counts, t.to_string())) {
                if wanted(&kinds, kind.clone()) {
                    let (seconds, bytes) = match kind.as_str() {
                        "bf16" => bf16(kernels, &memory, tokens),
                        "int8" => int8(kernels, &memory, tokens, Precision::TwoPlanes),
                        "int8x1" => int8(kernels, &memory, tokens, Precision::OnePlane),
                        "mxfp4" => mxfp4(kernels, &memory, tokens, Precision::F32),
                        "mxfp4x2" => mxfp4(kernels, &memory, tokens, Precision::TwoPlanes),
                        _ => mxfp4(kernels, &memory, tokens, Precision::OnePlane),
                    };
                    let (rate, macs) = (bytes / seconds / 1e9, (N * K * tokens) as f64 / seconds / 1e9);
                    println!(
                        "  {kind:7} T {tokens:3}: {rate:6.2} GB/s ({:.2} of read), {macs:6.1} GMAC/s ({:.2} of peak)",
                        rate / read,
                        macs / fma
                    );
                }
            }
        }
        if wanted(&kinds, kinds[6].clone()) {
            attend::attend(kernels, read, fma);
            swiglu(kernels);
        }
    }
}

/// Seconds a call, the best of passes that last half a second in all.
fn best(calls: usize, mut pass: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < Duration::from_millis(500) {
        let from = thread_seconds();
        pass();
        best = best.min(thread_seconds() - from);
    }
    best / calls as f64
}

/// Time this thread has run: what others take of the processor does not count, what they take of the memory does.
#[cfg(target_os = "linux")]
fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call only writes `time`.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(not(target_os = "linux"))]
fn thread_seconds() -> f64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

/// Bytes in huge pages, as the engine keeps its weights; values of no importance, but as bf16 near 1.
fn huge(len: usize) -> memmap2::MmapMut {
    let mut map = memmap2::MmapMut::map_anon(len).expect("memory for the weights");
    #[cfg(target_os = "linux")]
    map.advise(memmap2::Advice::HugePage).ok();
    let mut x = 1u32;
    for pair in map.chunks_exact_mut(2) {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        pair.copy_from_slice(&[(x >> 24) as u8, 0x3f | (x >> 16) as u8 & 0x80]);
    }
    map
}

fn read_rate(memory: &[u8]) -> f64 {
    let words: &[u64] = bytemuck::cast_slice(memory);
    let seconds = best(1, || {
        let mut sums = [0u64; 64];
        for line in words.chunks_exact(64) {
            for (sum, word) in sums.iter_mut().zip(line) {
                *sum ^= word;
            }
        }
        black_box(sums);
    });
    memory.len() as f64 / seconds / 1e9
}

/// G multiply-adds a second that this instruction set reaches in registers alone.
fn fma_rate(kernels: Kernels) -> f64 {
    match kernels.isa() {
        Isa::Portable => peak(&portable_peak),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Kernels::new` has asked for these features.
        Isa::Avx2 => peak(&|| unsafe { avx2_peak() }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Kernels::new` has asked for these features.
        Isa::Avx512 | Isa::Avx512VnniAlone | Isa::Avx512Vnni => peak(&|| unsafe { avx512_peak() }),
        #[cfg(not(target_arch = "x86_64"))]
        _ => unreachable!(),
    }
}

const PEAK_ROUNDS: usize = 1_000_000;

/// G multiply-adds a second of a loop that makes PEAK_ROUNDS times what it returns.
fn peak(round: &dyn Fn() -> usize) -> f64 {
    let mut macs = 0;
    let seconds = best(1, || macs = round());
    (macs * PEAK_ROUNDS) as f64 / seconds / 1e9
}

fn portable_peak() -> usize {
    let mut acc = [[1.0f32; 8]; 8];
    let (a, b) = (black_box(0.999f32), black_box(0.001f32));
    for _ in 0..PEAK_ROUNDS {
        acc.iter_mut().flatten().for_each(|acc| *acc = *acc * a + b);
    }
    black_box(acc);
    64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2_peak() -> usize {
    use std::arch::x86_64::*;
    let mut acc = [_mm256_set1_ps(1.0); 12];
    let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
    for _ in 0..PEAK_ROUNDS {
        for acc in &mut acc {
            *acc = _mm256_fmadd_ps(*acc, a, b);
        }
    }
    black_box(acc);
    12 * 8
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512_peak() -> usize {
    use std::arch::x86_64::*;
    let mut acc = [_mm512_set1_ps(1.0); 12];
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    for _ in 0..PEAK_ROUNDS {
        for acc in &mut acc {
            *acc = _mm512_fmadd_ps(*acc, a, b);
        }
    }
    black_box(acc);
    12 * 16
}

fn activations(tokens: usize) -> Vec<f32> {
    (0..tokens * K).map(|i| (i % 37) as f32 / 37.0 - 0.5).collect()
}

/// (seconds a product, bytes of its weights)
fn bf16(kernels: Kernels, memory: &[u8], tokens: usize) -> (f64, f64) {
    let all: &[u16] = bytemuck::cast_slice(memory);
    let count = if tokens > 64 { 1 } else { BF16_COUNT };
    let (x, mut y) = (activations(tokens), vec![0.0; tokens * N]);
    let (mut buffer, mut scratch) = (InputBuffer::default(), Scratch::new());
    let seconds = best(count, || {
        for w in all.chunks_exact(N * K).take(count) {
            let x = kernels.bf16_input(Matrix::new(&x, tokens, K), &mut buffer);
            let y = TileMut::new(&mut y, tokens, N);
            kernels.bf16_product(Matrix::new(w, N, K), &x, None, y, Write::Set, &mut scratch);
        }
    });
    (seconds, (N * K * 2) as f64)
}

/// (seconds a product, bytes of its weights)
fn mxfp4(kernels: Kernels, memory: &[u8], tokens: usize, precision: Precision) -> (f64, f64) {
    const ROWS: usize = 96;
    let count = if tokens > 64 { 1 } else { MXFP4_COUNT };
    let (blocks, scales) = memory.split_at(MXFP4_COUNT * N * K / 2);
    // Scales of the model lie around 2^-7. Bytes of no importance need no regrouping.
    let scales: Vec<u8> = scales[..MXFP4_COUNT * N * K / 32].iter().map(|s| 116 + s % 8).collect();
    let values = activations(tokens);
    let mut x = Activations::with_room(precision, tokens, K);
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let mut scratch = Scratch::new();
    let seconds = best(count, || {
        for (blocks, scales) in
            blocks.chunks_exact(N * K / 2).zip(scales.chunks_exact(N * K / 32)).take(count)
        {
            for (token, values) in values.chunks_exact(K).enumerate() {
                // SAFETY: there is one thread.
                unsafe { x.shared().set(kernels, token, 0, values) };
            }
            let w = GroupedMxfp4::new(kernels, blocks, scales, (N, K), true);
            for row in (0..N).step_by(ROWS) {
                for ids in ids.chunks(TILE / ROWS) {
                    black_box(kernels.mxfp4_product(w, &x, ids, row..row + ROWS, &mut scratch));
                }
            }
        }
    });
    (seconds, (N * K / 2 + N * K / 32) as f64)
}

/// (seconds a product, bytes of its weights)
fn int8(kernels: Kernels, memory: &[u8], tokens: usize, precision: Precision) -> (f64, f64) {
    const ROWS: usize = 96;
    let (numbers, scales) = GroupedInt8::bytes(N, K);
    let count = if tokens > 64 { 1 } else { memory.len() / (numbers + scales) };
    let values = activations(tokens);
    let mut x = Activations::with_room(precision, tokens, K);
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let mut scratch = Scratch::new();
    let seconds = best(count, || {
        for bytes in memory.chunks_exact(numbers + scales).take(count) {
            for (token, values) in values.chunks_exact(K).enumerate() {
                // SAFETY: there is one thread.
                unsafe { x.shared().set(kernels, token, 0, values) };
            }
            let w = GroupedInt8::new(kernels, bytes, (N, K));
            for row in (0..N).step_by(ROWS) {
                for ids in ids.chunks(TILE / ROWS) {
                    black_box(kernels.int8_product(w, &x, ids, row..row + ROWS, &mut scratch));
                }
            }
        }
    });
    (seconds, (numbers + scales) as f64)
}

fn swiglu(kernels: Kernels) {
    let gate_up = activations(512);
    let mut y = vec![0.0; 512 * 1440];
    let seconds = best(1, || {
        kernels.swiglu(Matrix::new(&gate_up, 512, 2880), 7.0, TileMut::new(&mut y, 512, 1440));
    });
    println!("  swiglu: {:.2} G activations/s", 512.0 * 1440.0 / seconds / 1e9);
}
