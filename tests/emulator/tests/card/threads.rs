//! Barriers and warps: that they work, and that each way of getting them wrong is noticed.

use crate::support::card;
use cudarc::driver::{LaunchConfig, PushKernelArg, sys::CUresult};

const REVERSE: &str = r#"
extern "C" __global__ void reverse(float* out, const float* in) {
    __shared__ float tile[256];
    const unsigned i = threadIdx.x, base = blockIdx.x * blockDim.x;
    tile[i] = in[base + i];
    __syncthreads();
    out[base + i] = tile[blockDim.x - 1 - i];
}"#;

fn config(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}

fn reversed(source: &str) -> Option<(Vec<f32>, Vec<f32>)> {
    let card = card()?;
    let kernel = card.kernel(source, "reverse");
    let input: Vec<f32> = (0..3 * 256).map(|i| i as f32).collect();
    let a = card.stream.clone_htod(&input).unwrap();
    let mut b = card.stream.alloc_zeros::<f32>(input.len()).unwrap();
    // SAFETY: both buffers hold 3 blocks of 256 values.
    unsafe { card.stream.launch_builder(&kernel).arg(&mut b).arg(&a).launch(config(3, 256, 0)) }.unwrap();
    let expected = input.chunks(256).flat_map(|block| block.iter().rev().copied()).collect();
    Some((card.stream.clone_dtoh(&b).unwrap(), expected))
}

#[test]
fn a_barrier_lets_every_thread_see_what_the_others_wrote() {
    let Some((got, expected)) = reversed(REVERSE) else { return };
    assert_eq!(got, expected);
}

#[test]
fn a_missing_barrier_shows_as_nan_in_the_shuffled_order() {
    let planted = REVERSE.replacen("__syncthreads();", "", 1);
    let Some((got, _)) = reversed(&planted) else { return };
    assert!(got.iter().any(|v| v.is_nan()));
}

#[test]
fn shuffles_votes_and_butterflies_move_what_they_should() {
    let Some(card) = card() else { return };
    let kernel = card.kernel(
        r#"#include "intrinsics.cuh"
        extern "C" __global__ void warp(int* out, float* sums) {
            const int lane = threadIdx.x;
            out[lane] = __shfl_sync(0xFFFFFFFFu, lane * 10, lane + 1);
            out[32 + lane] = __shfl_xor_sync(0xFFFFFFFFu, lane, 5);
            out[64 + lane] = __shfl_down_sync(0xFFFFFFFFu, lane, 4, 8);
            out[96 + lane] = __shfl_up_sync(0xFFFFFFFFu, lane, 3u);
            out[128 + lane] = (int)__ballot_sync(0xFFFFFFFFu, lane % 3 == 0);
            if (lane < 16) out[160 + lane] = __any_sync(0xFFFFu, lane == 2);
            else out[160 + lane] = __all_sync(0xFFFF0000u, lane != 20);
            float shuffled = 1.0f / (lane + 1);
            for (int step = 16; step; step >>= 1) shuffled += __shfl_xor_sync(0xFFFFFFFFu, shuffled, step);
            sums[lane] = shuffled - warp_sum(1.0f / (lane + 1));
            sums[32 + lane] = warp_max(lane == 7 ? 3.5f : -1.0f * lane);
        }"#,
        "warp",
    );
    let mut out = card.stream.alloc_zeros::<i32>(192).unwrap();
    let mut sums = card.stream.alloc_zeros::<f32>(64).unwrap();
    // SAFETY: 6 and 2 values a lane.
    unsafe { card.stream.launch_builder(&kernel).arg(&mut out).arg(&mut sums).launch(config(1, 32, 0)) }
        .unwrap();
    let (out, sums) = (card.stream.clone_dtoh(&out).unwrap(), card.stream.clone_dtoh(&sums).unwrap());
    for lane in 0..32i32 {
        let at = lane as usize;
        assert_eq!(out[at], (lane + 1) % 32 * 10);
        assert_eq!(out[32 + at], lane ^ 5);
        assert_eq!(out[64 + at], if lane % 8 < 4 { lane + 4 } else { lane });
        assert_eq!(out[96 + at], if lane >= 3 { lane - 3 } else { lane });
        assert_eq!(out[128 + at], 0x4924_9249);
        assert_eq!(out[160 + at], i32::from(lane < 16));
        assert_eq!(sums[at].to_bits(), 0, "warp_sum has the bits of the xor shuffles");
        assert_eq!(sums[32 + at], 3.5);
    }
}

/// Launches a kernel that takes one pointer, with 64 threads, and returns the report of its failure.
fn report_of(source: &str, name: &str) -> Option<String> {
    let card = card()?;
    let kernel = card.kernel(&format!("#include \"intrinsics.cuh\"\n{source}"), name);
    let mut out = card.stream.alloc_zeros::<f32>(64).unwrap();
    // SAFETY: what the kernel does wrong, the emulated card must notice.
    unsafe { card.stream.launch_builder(&kernel).arg(&mut out).launch(config(2, 64, 1024)) }.unwrap();
    let (error, report) = card.failure();
    assert_eq!(error.0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert!(report.contains(name), "the report names the kernel: {report}");
    Some(report)
}

fn check_report(name: &str, body: &str, says: &str) {
    let source = format!("extern \"C\" __global__ void {name}(float* out) {{\n{body}\n}}");
    if let Some(report) = report_of(&source, name) {
        assert!(report.contains(says), "{report}");
    }
}

#[test]
fn barriers_in_different_branches_are_reported() {
    check_report(
        "branches",
        "if (threadIdx.x < 32) {\n__syncthreads();\n} else {\n__syncthreads();\n}",
        "divergent barrier: stands at __syncthreads in line",
    );
}

#[test]
fn a_thread_that_returns_before_a_barrier_is_reported() {
    check_report("early", "if (threadIdx.x == 5) return;\n__syncthreads();", "thread (5, 0, 0) returned");
}

#[test]
fn lanes_at_different_operations_are_reported() {
    check_report(
        "mixed",
        "if (threadIdx.x & 1) __syncwarp();\nelse out[0] = __shfl_sync(~0u, 1.0f, 0);",
        "while other lanes of its warp are at",
    );
    check_report("masks", "if (threadIdx.x & 1) __syncwarp(); else __syncwarp(0x55555555u);", "returned");
    check_report("outside", "__syncwarp(1u);", "is not in its own mask 00000001");
}

#[test]
fn a_misaligned_asynchronous_copy_is_reported() {
    check_report(
        "misaligned",
        "DYNAMIC_SHARED(float, tile);\ncopy_async_16(tile + threadIdx.x, out);",
        "is not a multiple of 16",
    );
}

#[test]
fn a_misaligned_vector_and_an_index_past_an_array_are_reported_with_their_line() {
    check_report(
        "vector",
        "\n*(float4*)(out + threadIdx.x) = make_float4(0, 0, 0, 0);",
        "test.cu line 4: a store of type",
    );
    let body = "__shared__ float tile[8];\ntile[threadIdx.x] = 1;\nout[0] = tile[1];";
    check_report("array", body, "test.cu line 4: index");
}

#[test]
fn an_asynchronous_copy_is_poison_until_it_is_waited_for() {
    let Some(card) = card() else { return };
    let source = r#"#include "intrinsics.cuh"
    extern "C" __global__ void copy(float* out, const float* in) {
        __shared__ __align__(16) float tile[3][4];
        for (int stage = 0; stage < 3; stage++) {
            copy_async_16(tile[stage], in + 4 * stage, stage != 1);
            copy_async_commit();
        }
        copy_async_wait<PENDING>();
        for (int stage = 0; stage < 3; stage++) out[stage] = tile[stage][3];
    }"#;
    let input = card.stream.clone_htod(&(0..12).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let mut out = card.stream.alloc_zeros::<f32>(3).unwrap();
    for pending in 0..=3 {
        let kernel = card.kernel(&source.replacen("PENDING", &pending.to_string(), 1), "copy");
        // SAFETY: one thread reads 12 values and writes 3.
        unsafe { card.stream.launch_builder(&kernel).arg(&mut out).arg(&input).launch(config(1, 1, 0)) }
            .unwrap();
        let got = card.stream.clone_dtoh(&out).unwrap();
        let expected = [3.0, 0.0, 11.0]; // the middle one is filled with zeros
        for stage in 0..3 {
            if stage < 3 - pending {
                assert_eq!(got[stage], expected[stage], "{pending} pending, stage {stage}");
            } else {
                assert!(got[stage].is_nan(), "{pending} pending, stage {stage}");
            }
        }
    }
}

#[test]
fn a_launch_beyond_the_limits_is_refused() {
    let Some(card) = card() else { return };
    let kernel = card.kernel(
        "constexpr int WARPS = 2;\nextern \"C\" __global__ void __launch_bounds__(WARPS * 32, 1) bounded(float* out) {}",
        "bounded",
    );
    let mut out = card.stream.alloc_zeros::<f32>(1).unwrap();
    let mut launch = |grid, block, shared| {
        // SAFETY: the kernel does nothing.
        unsafe { card.stream.launch_builder(&kernel).arg(&mut out).launch(config(grid, block, shared)) }
            .map(|_| ())
            .map_err(|e| e.0)
    };
    assert_eq!(launch(1, 64, 48 << 10), Ok(()));
    assert_eq!(launch(1, 65, 0), Err(CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES));
    assert_eq!(launch(1, 2048, 0), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
    assert_eq!(launch(0, 32, 0), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
    assert_eq!(launch(1, 64, (48 << 10) + 1), Err(CUresult::CUDA_ERROR_INVALID_VALUE));
    let attribute =
        cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    kernel.set_attribute(attribute, 100 << 10).unwrap();
    assert_eq!(launch(1, 64, 100 << 10), Ok(()));
    assert!(kernel.set_attribute(attribute, 164 << 10).is_err(), "sm_80 has 163 KB");
    card.stream.synchronize().unwrap();
}
