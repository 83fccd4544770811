//! The processor and its memory.

use crate::machine;
use flotilla_engine::backend::cpu::kernels::Isa;
use flotilla_engine::backend::cpu::measure::Bench;
use flotilla_worker::memory_available;
use serde::Serialize;
use std::fs;

#[derive(Debug, Serialize)]
pub struct Machine {
    pub host: String,
    pub processor: Option<String>,
    /// The widest instruction set that the kernels have and the processor, too.
    pub isa: String,
    pub cores: usize,
    pub memory_bytes: Option<u64>,
    pub memory_available_bytes: Option<u64>,
    /// Whether memory comes in huge pages: `always`, `madvise` (on demand, which is enough) or `never`.
    pub huge_pages: Option<String>,
    pub reads: Option<Reads>,
}

/// What all cores together read of memory that no cache holds, in bytes a second: decode on the CPU is bound by it.
#[derive(Debug, Serialize)]
pub struct Reads {
    /// Where huge pages were asked for, as for weights and KV cache.
    pub huge_pages: f64,
    pub small_pages: f64,
    /// Which part of what was asked for came in huge pages.
    pub huge_share: Option<f64>,
}

pub fn look(measure: bool) -> Machine {
    Machine {
        host: machine::host_name(),
        processor: value_of("/proc/cpuinfo", "model name"),
        isa: format!("{:?}", Isa::detect()).to_lowercase(),
        cores: machine::cores(),
        memory_bytes: memory_bytes(),
        memory_available_bytes: memory_available(),
        huge_pages: huge_pages(),
        reads: if measure { reads() } else { None },
    }
}

/// Nothing where there is no memory to measure with.
fn reads() -> Option<Reads> {
    const BYTES: usize = 1 << 30;
    let bytes = memory_available().map_or(BYTES, |free| BYTES.min(free as usize / 4));
    let best = |bench: &Bench| (0..5).map(|_| bench.read()).fold(0.0, f64::max);
    let small_pages = best(&Bench::new(machine::cores(), bytes, false).ok()?);
    let bench = Bench::new(machine::cores(), bytes, true).ok()?;
    Some(Reads { huge_pages: best(&bench), small_pages, huge_share: bench.huge_share() })
}

fn memory_bytes() -> Option<u64> {
    let total = value_of("/proc/meminfo", "MemTotal")?;
    Some(total.strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// `always [madvise] never`
fn huge_pages() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// The first line `key : value` of a file of the system's.
fn value_of(file: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let (_, value) =
        text.lines().filter_map(|line| line.split_once(':')).find(|(found, _)| found.trim() == key)?;
    Some(value.trim().to_owned())
}
