//! Warpgroup products against plain ones, and what is noticed of their protocol.

use crate::support::{Card, card};
use cudarc::driver::{LaunchConfig, PushKernelArg};
use half::f16;

const PRODUCT: &str = r#"#include "wgmma.cuh"
extern "C" __global__ void product(float* d, const uint16_t* a, const uint16_t* b) {
    // a [64, 16], b [32, 64] (a row for each column of the product), of which 16 from 32 on are multiplied
    DYNAMIC_SHARED(char, shared);
    char* tile = shared + (-(size_t)shared & 1023);
    for (int i = threadIdx.x; i < 32 * 8; i += 128) copy_async_16(tile + wgmma_piece(i / 8, i % 8), b + 8 * i);
    copy_async_commit();
    copy_async_wait<0>();
    fence_async_proxy();
    __syncthreads();
    const unsigned g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2, row = threadIdx.x / 32 * 16 + g;
    unsigned fa[4];
    for (int i = 0; i < 4; i++) fa[i] = *(const unsigned*)(a + (row + i % 2 * 8) * 16 + t + i / 2 * 8);
    float sum[16];
    for (int i = 0; i < 16; i++) sum[i] = i;
    wgmma_fence();
    wgmma_f16(sum, fa, tile + 64, true);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(sum);
    for (int i = 0; i < 16; i++) d[(row + i / 2 % 2 * 8) * 32 + i / 4 * 8 + t + i % 2] = sum[i] - i;
}"#;

/// Multiples of 1/8 up to 2: every product and every sum is exact in f32, whatever the order.
fn values(seed: u32, count: u32) -> Vec<u16> {
    (0..count).map(|i| f16::from_f32(((i * 37 + seed * 11) % 33) as f32 / 8.0 - 2.0).to_bits()).collect()
}

/// d, or the report of the launch that failed.
fn run(card: &Card, source: &str) -> Result<Vec<f32>, String> {
    let kernel = card.kernel(source, "product");
    let stream = &card.stream;
    let (a, b) =
        (stream.clone_htod(&values(1, 64 * 16)).unwrap(), stream.clone_htod(&values(2, 32 * 64)).unwrap());
    let mut d = stream.alloc_zeros::<f32>(64 * 32).unwrap();
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 5 * 1024 };
    // SAFETY: the shapes are those of the kernel's comment.
    unsafe { stream.launch_builder(&kernel).arg(&mut d).arg(&a).arg(&b).launch(config) }.unwrap();
    stream.clone_dtoh(&d).map_err(|_| card.report())
}

fn expected() -> Vec<f32> {
    let value = |bits: u16| f16::from_bits(bits).to_f32();
    let (a, b) = (values(1, 64 * 16), values(2, 32 * 64));
    let dot = |row: usize, column: usize| {
        (0..16).map(|k| value(a[row * 16 + k]) * value(b[column * 64 + 32 + k])).sum()
    };
    (0..64 * 32).map(|at| dot(at / 32, at % 32)).collect()
}

#[test]
fn a_slice_of_a_swizzled_tile_is_multiplied() {
    let Some(card) = card() else { return };
    assert_eq!(run(&card, PRODUCT), Ok(expected()));
}

#[test]
fn a_product_that_nobody_waits_for_is_not_in_the_sums() {
    let Some(card) = card() else { return };
    let zeros = vec![0.0; 64 * 32];
    assert_eq!(run(&card, &PRODUCT.replace("wgmma_wait<0>();", "")), Ok(zeros.clone()));
    assert_eq!(run(&card, &PRODUCT.replace("wgmma_commit();", "")), Ok(zeros));
}

#[test]
fn a_missing_fence_is_told() {
    for (fence, told) in [
        ("    wgmma_fence();\n", "no wgmma_fence since the last commit"),
        ("    fence_async_proxy();\n", "have written shared memory without fence_async_proxy"),
    ] {
        let Some(card) = card() else { return };
        let report = run(&card, &PRODUCT.replace(fence, "")).unwrap_err();
        assert!(report.contains(told), "{report}");
    }
}

#[test]
fn a_slice_that_begins_elsewhere_is_told() {
    let Some(card) = card() else { return };
    let report = run(&card, &PRODUCT.replace("tile + 64", "tile + 128")).unwrap_err();
    assert!(report.contains("no slice of a tile begins at"), "{report}");
}
