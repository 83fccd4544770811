//! Every kernel, compiled by the real NVRTC for every generation that is supported. No card is needed; what
//! is needed is NVRTC's wheel, which `tests/device/fetch-wheels.sh` fetches. Where it is not there the test
//! says so and passes, unless FLOTILLA_TEST_NVRTC=require.

use flotilla_engine::backend::cuda;
use flotilla_engine::collective::card;
use flotilla_engine::cuda::{Nvrtc, Source, measure, search_first};
use flotilla_shared::{ModelSpec, Plan};
use std::path::PathBuf;

/// Turing, A100, RTX 30, RTX 40, H100 and H200, RTX 50.
const ARCHITECTURES: [(u32, u32); 6] = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)];

/// Kernels that may spill registers, each with its reason.
const MAY_SPILL: [&str; 0] = [];

/// Every source that the program compiles, for the published models on one rank and on four.
fn sources() -> Vec<Source> {
    let mut sources = vec![measure::source(), card::nccl::wire_source()];
    sources.extend([2, 4, 16].map(card::host::source));
    for model in ["gpt-oss-120b", "gpt-oss-20b"] {
        let spec = ModelSpec::published(model).expect("a published model");
        for ranks in [1, 4] {
            let plan = Plan::with_shares(&spec, &vec![1.0; ranks]);
            let rank = plan.ranks().next().expect("rank 0");
            for source in cuda::sources(&spec, rank) {
                if !sources.contains(&source) {
                    sources.push(source);
                }
            }
        }
    }
    sources
}

/// Warpgroup products are Hopper's alone.
fn is_for(source: &Source, architecture: (u32, u32)) -> bool {
    source.name != "experts_wgmma.cu" || architecture == (9, 0)
}

fn wheels() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::env::var_os("FLOTILLA_CUDA_WHEELS")
        .map_or_else(|| target.with_file_name("cuda-wheels"), PathBuf::from)
}

/// The real compiler, where its wheel is.
fn compiler() -> Option<Nvrtc> {
    search_first(&wheels());
    match Nvrtc::open() {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) => {
            assert!(std::env::var("FLOTILLA_TEST_NVRTC").as_deref() != Ok("require"), "{error}");
            eprintln!("skipped: {error}\nhint: tests/device/fetch-wheels.sh fetches what this test needs");
            None
        }
    }
}

#[test]
fn every_kernel_compiles_for_every_generation_and_spills_nothing() {
    let Some(nvrtc) = compiler() else { return };
    println!("NVRTC {}", nvrtc.version());
    println!(
        "{:<32} {:>6} {:>9} {:>8} {:>6} {:>6}",
        "kernel", "arch", "registers", "shared", "stack", "spill"
    );
    let mut wrong = Vec::new();
    for architecture in ARCHITECTURES {
        for source in sources().iter().filter(|source| is_for(source, architecture)) {
            check(&nvrtc, source, architecture, &mut wrong);
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

/// So that the test above is not blind.
#[test]
fn a_mistake_is_told_with_its_line_and_a_spill_with_its_bytes() {
    let Some(nvrtc) = compiler() else { return };
    let broken = "extern \"C\" __global__ void broken(int* to) {\n    to[0] = nowhere;\n}\n";
    let error =
        Source { name: "broken.cu", text: broken, defines: vec![] }.cubin(&nvrtc, (8, 0)).unwrap_err();
    let told = error.to_string();
    assert!(told.starts_with("broken.cu does not compile for sm_80:\nbroken.cu(2): error: "), "{told}");
    assert!(told.contains("\n  2 |     to[0] = nowhere;"), "{told}");

    // More values at a time than a thread of 1024 has registers.
    let spills = "extern \"C\" __global__ void __launch_bounds__(1024) spills(float* values) {
        float held[COUNT];
        #pragma unroll
        for (int i = 0; i < COUNT; i++) held[i] = values[threadIdx.x * COUNT + i];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < COUNT; i++) values[threadIdx.x * COUNT + i] = held[i] * held[COUNT - 1 - i];
    }";
    let spills = Source { name: "spills.cu", text: spills, defines: vec![("COUNT", 200)] };
    let mut wrong = Vec::new();
    check(&nvrtc, &spills, (9, 0), &mut wrong);
    assert!(matches!(&wrong[..], [told] if told.starts_with("spills spills ")), "{wrong:?}");
}
