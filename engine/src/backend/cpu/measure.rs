//! What this machine's memory gives, and what the products make of it, in one run: rates in bytes of weights a second over
//! memory that no cache holds, in huge pages where the system gives them, on as many threads as a worker would use.

use super::kernels::{
    Activations, GroupedMxfp4, InputBuffer, Isa, Kernels, Matrix, Precision, TILE, TileMut, Write,
};
use super::threads::Threads;
use memmap2::MmapMut;
use std::hint::black_box;
use std::time::Instant;

/// Outputs and inputs of one matrix: the gate and up of one published expert.
const ROWS: usize = 5760;
const COLUMNS: usize = 2880;
/// Rows of one product of an expert.
const UNIT: usize = 96;

/// Memory to read, and who reads it.
pub struct Bench {
    threads: Threads,
    kernels: Kernels,
    memory: MmapMut,
}

impl Bench {
    /// Takes and fills `bytes` of memory: much more than the last cache holds.
    pub fn new(threads: usize, bytes: usize, huge: bool) -> std::io::Result<Bench> {
        let mut memory = MmapMut::map_anon(bytes)?;
        #[cfg(target_os = "linux")]
        if huge {
            // Where the kernel has none to give, the figures are those of small pages.
            let _ = memory.advise(memmap2::Advice::HugePage);
        }
        // As scales no 0 and no 255; as bf16, around 1.
        let mut x = 1u32;
        for pair in memory.chunks_exact_mut(2) {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            pair.copy_from_slice(&[116 + (x >> 29) as u8, 0x3f | (x >> 16) as u8 & 0x80]);
        }
        Ok(Bench { threads: Threads::new(threads), kernels: Kernels::detect(), memory })
    }

    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// Which part of the memory the system gave in huge pages; nothing where it does not say.
    pub fn huge_share(&self) -> Option<f64> {
        let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        // The kernel may have joined the mapping with its neighbours, so it is found by what it holds.
        let address = self.memory.as_ptr() as usize;
        let holds = |line: &str| {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let [from, to] = range.map(|(from, to)| [from, to].map(|n| usize::from_str_radix(n, 16)))?;
            Some((from.ok()?..to.ok()?).contains(&address))
        };
        let mapping = maps.lines().skip_while(|line| holds(line) != Some(true));
        let kib = mapping.skip(1).find_map(|line| line.strip_prefix("AnonHugePages:"))?;
        let kib: usize = kib.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(((kib * 1024) as f64 / self.memory.len() as f64).min(1.0))
    }

    /// Bytes a second, of one pass that only reads.
    pub fn read(&self) -> f64 {
        const CHUNK: usize = 1 << 20;
        let chunks: Vec<&[u8]> = self.memory.chunks_exact(CHUNK).collect();
        rate(chunks.len() * CHUNK, || {
            self.threads.ranges(chunks.len(), |range, _| {
                range.for_each(|chunk| {
                    black_box(self.kernels.read(chunks[chunk]));
                });
            });
        })
    }

    /// Bytes of weights a second, of one pass of bf16 products with `tokens` rows.
    pub fn bf16(&self, tokens: usize) -> f64 {
        let (x, mut y) = (values(tokens), vec![0.0; tokens * ROWS]);
        let words: &[u16] = bytemuck::cast_slice(&self.memory);
        let mut buffer = InputBuffer::with_room(tokens, COLUMNS);
        let x = self.kernels.bf16_input(Matrix::new(&x, tokens, COLUMNS), &mut buffer);
        let matrices = words.chunks_exact(ROWS * COLUMNS);
        rate(matrices.len() * ROWS * COLUMNS * 2, || {
            for weights in matrices.clone() {
                let weights = Matrix::new(weights, ROWS, COLUMNS);
                self.threads.columns(TileMut::new(&mut y, tokens, ROWS), |tile, scratch| {
                    self.kernels.bf16_product(weights, &x, None, tile, Write::Set, scratch);
                });
            }
        })
    }

    /// Bytes of weights a second, of one pass of an expert's products with `tokens` rows.
    pub fn mxfp4(&self, precision: Precision, tokens: usize) -> f64 {
        let mut x = Activations::with_room(precision, tokens, COLUMNS);
        for (token, values) in values(tokens).chunks_exact(COLUMNS).enumerate() {
            // SAFETY: no other thread knows of it.
            unsafe { x.shared().set(self.kernels, token, 0, values) };
        }
        let ids: Vec<u32> = (0..tokens as u32).collect();
        let (blocks, scales) = (ROWS * COLUMNS / 2, ROWS * COLUMNS / 32);
        // Bytes of no importance need no regrouping.
        let matrices = self.memory.chunks_exact(blocks + scales);
        rate(matrices.len() * (blocks + scales), || {
            for bytes in matrices.clone() {
                let (blocks, scales) = bytes.split_at(blocks);
                let weights = GroupedMxfp4::new(self.kernels, blocks, scales, (ROWS, COLUMNS), true);
                self.threads.ranges(ROWS / UNIT, |units, scratch| {
                    for unit in units {
                        for ids in ids.chunks(TILE / UNIT) {
                            let rows = unit * UNIT..(unit + 1) * UNIT;
                            black_box(self.kernels.mxfp4_product(weights, &x, ids, rows, scratch));
                        }
                    }
                });
            }
        })
    }
}

/// What prompts are multiplied at, in operations a second, a multiply-add being two.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compute {
    pub dense: f64,
    pub experts: f64,
}

impl Bench {
    /// With so many rows that weights are read once for many.
    pub fn compute(&self, precision: Precision) -> Compute {
        const ROWS: usize = 64;
        // Of 32 weights in 17 bytes.
        let expert_weights = self.mxfp4(precision, ROWS) * 32.0 / 17.0;
        Compute { dense: self.bf16(ROWS) * ROWS as f64, experts: 2.0 * expert_weights * ROWS as f64 }
    }
}

fn values(tokens: usize) -> Vec<f32> {
    (0..tokens * COLUMNS).map(|i| (i % 37) as f32 / 37.0 - 0.5).collect()
}

fn rate(bytes: usize, pass: impl FnOnce()) -> f64 {
    let start = Instant::now();
    pass();
    bytes as f64 / start.elapsed().as_secs_f64()
}
