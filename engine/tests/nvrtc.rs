//! Every kernel, compiled by the real NVRTC for every generation that is supported. No card is needed; what
//! is needed is NVRTC's wheel, which `tests/device/fetch-wheels.sh` fetches. Where it is not there the test
//! says so and passes, unless FLOTILLA_TEST_NVRTC=require.

use flotilla_engine::cuda::{Nvrtc, Source, measure, search_first};
use std::path::PathBuf;

/// Turing, A100, RTX 30, RTX 40, H100 and H200, RTX 50.
const ARCHITECTURES: [(u32, u32); 6] = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)];

/// Kernels that may spill registers, each with its reason.
const MAY_SPILL: [&str; 0] = [];

/// Every source that the program compiles on a card of this kind.
fn sources(_capability: (u32, u32)) -> Vec<Source> {
    vec![measure::source()]
}

fn wheels() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::env::var_os("FLOTILLA_CUDA_WHEELS")
        .map_or_else(|| target.with_file_name("cuda-wheels"), PathBuf::from)
}

/// The one test of this program: what is found first is what it uses.
#[test]
fn every_kernel_compiles_for_every_generation_and_spills_nothing() {
    search_first(&wheels());
    let nvrtc = match Nvrtc::open() {
        Ok(nvrtc) => nvrtc,
        Err(error) => {
            assert!(std::env::var("FLOTILLA_TEST_NVRTC").as_deref() != Ok("require"), "{error}");
            eprintln!("skipped: {error}\nhint: tests/device/fetch-wheels.sh fetches what this test needs");
            return;
        }
    };
    println!("NVRTC {}", nvrtc.version());
    println!(
        "{:<32} {:>6} {:>9} {:>8} {:>6} {:>6}",
        "kernel", "arch", "registers", "shared", "stack", "spill"
    );
    let mut wrong = Vec::new();
    for architecture in ARCHITECTURES {
        for source in sources(architecture) {
            check(&nvrtc, &source, architecture, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn check(nvrtc: &Nvrtc, source: &Source, architecture: (u32, u32), wrong: &mut Vec<String>) {
    let kernels = match source.resources(nvrtc, architecture) {
        Ok(kernels) if kernels.is_empty() => return wrong.push(format!("{} has no kernels", source.name)),
        Ok(kernels) => kernels,
        Err(error) => return wrong.push(error.to_string()),
    };
    let arch = format!("sm_{}{}", architecture.0, architecture.1);
    for kernel in kernels {
        println!(
            "{:<32} {arch:>6} {:>9} {:>8} {:>6} {:>6}",
            format!("{} {}", source.name, kernel.kernel),
            kernel.registers,
            kernel.shared_bytes,
            kernel.stack_bytes,
            kernel.spill_bytes
        );
        if kernel.spill_bytes > 0 && !MAY_SPILL.contains(&&*kernel.kernel) {
            wrong.push(format!("{} spills {} bytes on {arch}", kernel.kernel, kernel.spill_bytes));
        }
    }
}
