//! mma and ldmatrix against plain products.

use crate::support::card;
use cudarc::driver::{LaunchConfig, PushKernelArg};
use half::{bf16, f16};

const PRODUCT: &str = r#"#include "intrinsics.cuh"
extern "C" __global__ void product(float* c, const uint16_t* a, const uint16_t* b, const uint16_t* b_by_k) {
    // a [16, 16], b [8, 16] (a row for each column of the product), b_by_k [16, 8]: the same, transposed
    __shared__ __align__(16) uint16_t sa[16][16], sb[8][16], sbk[16][8];
    const unsigned lane = threadIdx.x;
    copy_async_16(&sa[lane / 2][lane % 2 * 8], a + 8 * lane);
    if (lane < 16) copy_async_16(&sb[lane / 2][lane % 2 * 8], b + 8 * lane);
    if (lane < 16) copy_async_16(&sbk[lane][0], b_by_k + 8 * lane);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    unsigned fa[4], fb[2], ft[2];
    ldmatrix_x4(fa, &sa[lane % 16][lane / 16 * 8]);
    ldmatrix_x2(fb, &sb[lane % 8][lane / 8 % 2 * 8]);
    ldmatrix_x2_trans(ft, &sbk[lane % 16][0]);
    const unsigned g = lane / 4, t = lane % 4 * 2;
    float sums[2][4] = {{1, 2, 3, 4}, {1, 2, 3, 4}};
    MMA(sums[0], fa, fb);
    MMA(sums[1], fa, ft);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) c[128 * i + (g + j / 2 * 8) * 8 + t + j % 2] = sums[i][j] - (j + 1);
}"#;

fn check(mma: &str, encode: impl Fn(f32) -> u16, decode: impl Fn(u16) -> f32) {
    let Some(card) = card() else { return };
    let kernel = card.kernel(&PRODUCT.replace("MMA", mma), "product");
    // Multiples of 1/8 up to 2: every product and every sum is exact in f32, whatever the order.
    let values = |seed: u32, count: u32| {
        (0..count).map(|i| encode(((i * 37 + seed * 11) % 33) as f32 / 8.0 - 2.0)).collect::<Vec<_>>()
    };
    let (a, b) = (values(1, 256), values(2, 128));
    let b_by_k: Vec<u16> = (0..128).map(|i| b[i % 8 * 16 + i / 8]).collect();
    let stream = &card.stream;
    let (da, db, dt) =
        (stream.clone_htod(&a).unwrap(), stream.clone_htod(&b).unwrap(), stream.clone_htod(&b_by_k).unwrap());
    let mut c = stream.alloc_zeros::<f32>(256).unwrap();
    let one_warp = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the shapes are those of the kernel's comment.
    unsafe { stream.launch_builder(&kernel).arg(&mut c).arg(&da).arg(&db).arg(&dt).launch(one_warp) }
        .unwrap();
    let c = stream.clone_dtoh(&c).unwrap();
    for row in 0..16 {
        for column in 0..8 {
            let expected: f32 = (0..16).map(|k| decode(a[row * 16 + k]) * decode(b[column * 16 + k])).sum();
            assert_eq!(c[row * 8 + column], expected, "row {row}, column {column}");
            assert_eq!(c[128 + row * 8 + column], expected, "transposed: row {row}, column {column}");
        }
    }
}

#[test]
fn a_bf16_tile_is_the_plain_product() {
    check("mma_bf16", |v| bf16::from_f32(v).to_bits(), |b| bf16::from_bits(b).to_f32());
}

#[test]
fn an_f16_tile_is_the_plain_product() {
    check("mma_f16", |v| f16::from_f32(v).to_bits(), |b| f16::from_bits(b).to_f32());
}
