// The two ends of a layer's residual path: embedding, and x += y with RMSNorm.
//
//   embed               x[t] = 0; y[t] = E[token t] where this rank has that row, else 0
//   add_norm_attention  x += y; h = x / rms(x) · w      h: act [T, H]
//   add_norm_mlp        the same                        h: f32 [T, H] for the router, which makes the experts' f16
//   norm_final          the same for the logit rows     h: act [logit rows, H]
//   add                 y += x: what a stage hands on
//
// x, y: f32 [T, H]; w: bf16 [H]; E: bf16 [V, H]. HIDDEN is H, a multiple of 32.
//
// Every rank and every backend must route a token alike, so x and the normed f32 have the bits of the CPU's
// `replicated.rs`: element i goes into lane i mod 16 by one fused multiply-add in rising order, lanes are
// folded 8, 4, 2, 1, mean and factor are f64, and each product is rounded by itself.
//
// Design: one block a row. All threads load x, y and w, 16 bytes an access and all at once, before *rows is known;
// they keep their part in registers and put the sum x + y into shared memory. One warp then runs the 16 chains (both
// halves of the warp the same ones: lanes 16 to 31 only keep it whole), with the next batch of shared loads in flight
// under the multiply-adds of the last, and folds with shuffles. Nothing is read twice from device memory.
//
// Predicted, not measured. Bytes a row: x 8 H, y 4 H, w 2 H (from cache), h 2 H (act) or 4 H (f32).
//   decode   bound by latency: loads 0.8 µs, chain H/16 · 4 cycles (0.45 µs at 1.6 GHz and H 2880), f64 root and
//            quotients 0.3 µs on data-centre cards, up to 1.5 µs where f64 runs at 1/64; 2 to 4 µs a launch.
//   prefill  8 blocks an SM hide the chain: 14 to 18 bytes an element at 0.8 of the device's read rate.
//
// Versions (device, date, µs with attention's and with mlp's norm, T = 1, 8, 32, 2048):
//   H200, 2026-11-28: 2.6 and 2.7, 2.7 and 2.8, 2.8 and 2.9, 22.3 and 25.3 (0.83 of the read rate)
//   1  2026-11-23  loads after *rows was known: never run on a card; a memory latency more
//   2  2026-11-23  as above

#include "intrinsics.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned QUADS = HIDDEN / 4;                             // of a row; a thread works on four elements
constexpr unsigned SHARE = (QUADS + THREADS - 1) / THREADS;        // quads of a thread
constexpr unsigned LANES = 16;                                     // of the sum
constexpr unsigned STEPS = HIDDEN / LANES;                         // of a lane
constexpr unsigned BATCH = STEPS % 12 == 0 ? 12 : STEPS % 10 == 0 ? 10 : STEPS % 4 == 0 ? 4 : 2;
static_assert(HIDDEN % 32 == 0, "H is a multiple of 32");

struct Quad {
    float4 x;
    uint2 w;  // four bf16
};

__device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
}

__device__ __forceinline__ float4 scale(const Quad& quad, float factor) {
    return make_float4(__fmul_rn(__fmul_rn(quad.x.x, factor), lo_bf16(quad.w.x)),
                       __fmul_rn(__fmul_rn(quad.x.y, factor), hi_bf16(quad.w.x)),
                       __fmul_rn(__fmul_rn(quad.x.z, factor), lo_bf16(quad.w.y)),
                       __fmul_rn(__fmul_rn(quad.x.w, factor), hi_bf16(quad.w.y)));
}

// What a thread needs of a row, all of it on its way at once.
struct Part {
    Quad quads[SHARE];
    float4 added[SHARE];

    // Asked for before it is known whether there is such a row: the two are then waited for together.
    __device__ __forceinline__ void load(const float* x, const float* y, const bf16* w) {
        #pragma unroll
        for (unsigned i = 0; i < SHARE; ++i) {
            const unsigned quad = threadIdx.x + i * THREADS;
            if (quad < QUADS) {
                quads[i].x = reinterpret_cast<const float4*>(x)[quad];
                added[i] = reinterpret_cast<const float4*>(y)[quad];
                quads[i].w = reinterpret_cast<const uint2*>(w)[quad];
            }
        }
    }

    // x += y, into `row` too.
    __device__ __forceinline__ void add_into(float* x, float* row) {
        #pragma unroll
        for (unsigned i = 0; i < SHARE; ++i) {
            const unsigned quad = threadIdx.x + i * THREADS;
            if (quad < QUADS) {
                quads[i].x = plus(quads[i].x, added[i]);
                reinterpret_cast<float4*>(x)[quad] = quads[i].x;
                reinterpret_cast<float4*>(row)[quad] = quads[i].x;
            }
        }
    }
};

// Σ x² in the order that is the definition; a whole warp, the same value in each of its lanes.
__device__ __forceinline__ float sum_of_squares(const float* row) {
    const float* own = row + threadIdx.x % LANES;
    float next[BATCH];
    #pragma unroll
    for (unsigned j = 0; j < BATCH; ++j) next[j] = own[j * LANES];
    float sum = 0.0f;
    for (unsigned step = 0; step < STEPS; step += BATCH) {
        float x[BATCH];
        #pragma unroll
        for (unsigned j = 0; j < BATCH; ++j) x[j] = next[j];
        if (step + BATCH < STEPS) {
            #pragma unroll
            for (unsigned j = 0; j < BATCH; ++j) next[j] = own[(step + BATCH + j) * LANES];
        }
        #pragma unroll
        for (unsigned j = 0; j < BATCH; ++j) sum = __fmaf_rn(x[j], x[j], sum);
    }
    #pragma unroll
    for (unsigned half = LANES / 2; half > 0; half /= 2) {
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, half));
    }
    return sum;
}

// x += y, and the row's factor 1 / sqrt(mean(x²) + eps). Every thread of the block calls it.
__device__ __forceinline__ float add_and_factor(Part& part, float* x, float eps) {
    __shared__ __align__(16) float row[HIDDEN];
    __shared__ float factor;
    part.add_into(x, row);
    __syncthreads();
    if (threadIdx.x < 32) {
        const float sum = sum_of_squares(row);
        if (threadIdx.x == 0) {
            const double mean = static_cast<double>(sum) / static_cast<double>(HIDDEN);
            factor = static_cast<float>(1.0 / sqrt(mean + static_cast<double>(eps)));
        }
    }
    __syncthreads();
    return factor;
}

__device__ __forceinline__ void store_act(act* h, const Part& part, float factor) {
    #pragma unroll
    for (unsigned i = 0; i < SHARE; ++i) {
        const unsigned quad = threadIdx.x + i * THREADS;
        if (quad < QUADS) {
            const float4 v = scale(part.quads[i], factor);
            reinterpret_cast<uint2*>(h)[quad] = make_uint2(pack_act(v.x, v.y), pack_act(v.z, v.w));
        }
    }
}

// Grid: T. The table holds rows vocab_start .. vocab_start + vocab_count of the vocabulary.
extern "C" __global__ void __launch_bounds__(THREADS)
embed(const unsigned* __restrict__ rows, const unsigned* __restrict__ tokens, const bf16* __restrict__ table,
      unsigned vocab_start, unsigned vocab_count, float* x, float* y) {
    let_next_start();
    wait_for_previous();
    const unsigned t = blockIdx.x;
    if (t >= *rows) return;
    const unsigned own = tokens[t] - vocab_start;  // wraps to a large number below the start
    const uint2* source = reinterpret_cast<const uint2*>(table) + static_cast<unsigned long long>(own) * QUADS;
    const unsigned long long to = static_cast<unsigned long long>(t) * QUADS;
    for (unsigned quad = threadIdx.x; quad < QUADS; quad += THREADS) {
        const uint2 e = own < vocab_count ? source[quad] : make_uint2(0, 0);
        reinterpret_cast<float4*>(x)[to + quad] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        reinterpret_cast<float4*>(y)[to + quad] = make_float4(lo_bf16(e.x), hi_bf16(e.x), lo_bf16(e.y), hi_bf16(e.y));
    }
}

// Grid: T.
extern "C" __global__ void __launch_bounds__(THREADS)
add_norm_attention(const unsigned* __restrict__ rows, float* x, const float* y, const bf16* w, float eps, act* h) {
    const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * HIDDEN;
    let_next_start();
    wait_for_previous();
    Part part;
    part.load(x + at, y + at, w);
    if (blockIdx.x >= *rows) return;
    const float factor = add_and_factor(part, x + at, eps);
    store_act(h + at, part, factor);
}

// Grid: T.
extern "C" __global__ void __launch_bounds__(THREADS)
add_norm_mlp(const unsigned* __restrict__ rows, float* x, const float* y, const bf16* w, float eps, float* h) {
    const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * HIDDEN;
    let_next_start();
    wait_for_previous();
    Part part;
    part.load(x + at, y + at, w);
    if (blockIdx.x >= *rows) return;
    const float factor = add_and_factor(part, x + at, eps);
    #pragma unroll
    for (unsigned i = 0; i < SHARE; ++i) {
        const unsigned quad = threadIdx.x + i * THREADS;
        if (quad < QUADS) {
            reinterpret_cast<float4*>(h + at)[quad] = scale(part.quads[i], factor);
        }
    }
}

// Grid: logit rows. Row i of h is row logit_rows[i] of x; the other rows of x are dead by now and stay as they are.
// logit_rows rise, so no two blocks meet in a row of x.
extern "C" __global__ void __launch_bounds__(THREADS)
norm_final(const unsigned* __restrict__ logit_row_count, const unsigned* __restrict__ logit_rows, float* x,
           const float* y, const bf16* w, float eps, act* h) {
    let_next_start();
    wait_for_previous();
    const unsigned i = blockIdx.x;
    if (i >= *logit_row_count) return;
    const unsigned long long from = static_cast<unsigned long long>(logit_rows[i]) * HIDDEN;
    Part part;
    part.load(x + from, y + from, w);
    const float factor = add_and_factor(part, x + from, eps);
    store_act(h + static_cast<unsigned long long>(i) * HIDDEN, part, factor);
}

// Grid: T.
extern "C" __global__ void __launch_bounds__(THREADS)
add(const unsigned* rows, const float* x, float* y) {
    let_next_start();
    wait_for_previous();
    if (blockIdx.x >= *rows) return;
    const unsigned long long at = static_cast<unsigned long long>(blockIdx.x) * QUADS;
    for (unsigned quad = threadIdx.x; quad < QUADS; quad += THREADS) {
        float4* sum = reinterpret_cast<float4*>(y) + at + quad;
        *sum = plus(reinterpret_cast<const float4*>(x)[at + quad], *sum);
    }
}
