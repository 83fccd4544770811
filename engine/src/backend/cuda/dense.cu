// Dense products with bf16 weights: y[t, n] = Σ_k x[t, k] · W[n, k] + bias[n].
//
// x: act [T, K], W: bf16 [M, K], bias: bf16 [M] or null, y: f32 [T, M]; K a multiple of 8, rows 16-byte aligned.
// Products are exact, sums are f32. T, M and K are arguments: one program serves qkv, o and unembed. The kernels of a
// kind sum in one order, so up to T = 16, and again above, a row's bits do not depend on how many others there are.
// Rows at and past *rows are not written. Where cuBLASLt is there it takes T > 16 (dense/library.rs); it chooses an
// order of its own for each T, and writes the rows past *rows, too. On sm_75 x is f16, and weights are converted to it.
//
// product_few: T ≤ 16, bound by reading W once.
//   A block owns 16 (or 8) rows of W, its 8 warps own slices of K, and a warp feeds 16-byte loads straight into
//   mma fragments. A sum over k may be taken in any order that both operands share: of a chunk of 32 columns the
//   four lanes of a quad own 8 consecutive ones each, which makes two m16n8k16 steps without a shuffle. Tokens are
//   the 16 rows of an mma and weights its 8 columns, so that T ≤ 16 is one mma whatever T is, and a block
//   may own as few as 8 rows of W. x is not staged in shared memory: a block uses each of its elements once, and
//   the L1 serves the other blocks of the multiprocessor (W is kept out of it). Loads are not predicated: past
//   an end they repeat what is there, x is masked at its use, and rows of x past *rows are read and change nothing.
//   A ring of 4 to 6 chunks keeps loads in flight; partial sums of the warps are added in shared memory in order.
//   8 warps · 4 chunks · 1 KiB = 32 KiB in flight a block, three blocks a multiprocessor at T ≤ 8, two above. ptxas
//   sends a round's loads together after its mma, so about 3/4 of that on average, where 25 KiB a multiprocessor
//   cover 4.8 TB/s · 0.7 µs on 132 of them.
//
// product_many: T > 16, tiles of T by M, K in steps, cp.async stages, XOR-swizzled shared memory, ldmatrix, mma.
//   large 128 × 128 × 32, 3 stages, 8 warps of 64 × 32; middle 64 × 32 × 64, 4 stages, 4 warps of 32 × 16, for
//   when large tiles would leave half of the multiprocessors idle. Both take 48 KiB, so nothing must be asked for.
//   On sm_75 two stages through registers, where weights become f16 on their way.
//   Middle is bound by 1.5 KiB of copies a 64 Ki multiply-adds.
//
// Measured (H200, which reads 4.48 TB/s, 2026-11-28, engine/benches/cuda), µs, and those of cuBLASLt for the same:
//   T                       1            16            64           512          2048
//   qkv     5120 × 2880  10.5   9.8   14.9   9.9   20.6  10.1   80.0  24.0  198.9  90.1
//   o       2880 × 4096   8.4  11.1   10.4  11.1   22.1   9.8   70.4  18.4  174.2  70.0
//   unembed 201088×2880 276.0 278.7  319.2 287.3  385.1 322.0
//   qkv/4   1280 × 2880   4.9   6.7    7.0   7.0   15.9   7.4   26.1   8.6   79.2  22.3
//   o/4     2880 × 1024   4.1   4.6    5.3   4.8    7.0   4.9   20.1   7.2   48.2  22.9
//   cuBLASLt's are without a bias, which takes a small launch more, and with any order of sums.
//
// Versions (2 is the one that was measured):
//   1  2026-11-23  product_few with predicated loads, *rows read first: never run on a card; in its SASS every load
//                  waited for *rows, and zeros for skipped loads were merged right behind them, which waits for them
//   2  2026-11-23  as above
// Not tried yet: K split over blocks for small M; a persistent grid for unembed; wgmma, which is what cuBLASLt has over
// product_many on sm_90.

#include "intrinsics.cuh"

// ---------------------------------------------------------------------------------------------- product_few

constexpr unsigned FEW_WARPS = 8;
constexpr unsigned CHUNK = 32;  // columns of K that a warp takes at once

// Chunks in flight. A card without bf16 needs fewer (a T4 reads 0.3 TB/s), and its conversions want registers.
#ifdef ACT_IS_F16
constexpr unsigned DEPTH_MAX = 3;
#else
constexpr unsigned DEPTH_MAX = 8;
#endif

__device__ __forceinline__ uint4 zero_16() { return make_uint4(0, 0, 0, 0); }

// Fragments of one chunk: TILES · 8 rows of W and HALVES · 8 tokens, 8 columns of each.
template <unsigned HALVES, unsigned TILES>
struct Chunk {
    uint4 w[TILES];
    uint4 x[HALVES];
};

// What one lane reads: 8 columns of every chunk, row `lane / 4` of every tile of 8. A load asks for nothing: past its
// last chunk a lane reads that again, and past the last row or token that one.
template <unsigned HALVES, unsigned TILES>
struct FewSource {
    const uint4* w[TILES];
    const uint4* x[HALVES];
    unsigned last;  // chunk of this lane

    __device__ __forceinline__ void load_w(Chunk<HALVES, TILES>& to, unsigned chunk) const {
        const unsigned at = min(chunk, last) * (CHUNK / 8);
        #pragma unroll
        for (unsigned i = 0; i < TILES; ++i) to.w[i] = load_stream_16(w[i] + at);
    }
    __device__ __forceinline__ void load_x(Chunk<HALVES, TILES>& to, unsigned chunk) const {
        const unsigned at = min(chunk, last) * (CHUNK / 8);
        #pragma unroll
        for (unsigned i = 0; i < HALVES; ++i) to.x[i] = x[i][at];
    }
};

__device__ __forceinline__ uint4 masked(uint4 v, unsigned mask) {
    return make_uint4(v.x & mask, v.y & mask, v.z & mask, v.w & mask);
}

// sums += tokens · weightsᵀ over the 32 columns of a chunk, as two steps of 16; `exists`: of this lane's part of it.
template <unsigned HALVES, unsigned TILES>
__device__ __forceinline__ void multiply(float (&sums)[TILES][4], const Chunk<HALVES, TILES>& chunk, bool exists) {
    const unsigned mask = exists ? 0xffffffffu : 0;
    const uint4 low = masked(chunk.x[0], mask);
    const uint4 high = HALVES == 2 ? masked(chunk.x[HALVES - 1], mask) : zero_16();
    const unsigned first[4] = {low.x, high.x, low.y, high.y};
    const unsigned second[4] = {low.z, high.z, low.w, high.w};
    #pragma unroll
    for (unsigned i = 0; i < TILES; ++i) {
        const uint4 w = chunk.w[i];
        const unsigned w_first[2] = {bf16x2_to_act(w.x), bf16x2_to_act(w.y)};
        const unsigned w_second[2] = {bf16x2_to_act(w.z), bf16x2_to_act(w.w)};
        mma_act(sums[i], first, w_first);
        mma_act(sums[i], second, w_second);
    }
}

template <unsigned HALVES, unsigned TILES, unsigned DEPTH>
__device__ __forceinline__ void product_few(const unsigned* rows, const act* x, const bf16* w, const bf16* bias,
                                            float* y, unsigned t, unsigned m, unsigned k) {
    constexpr unsigned ROWS = TILES * 8, TOKENS = HALVES * 8;
    __shared__ float partial[FEW_WARPS][TOKENS][ROWS];
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    const unsigned row_first = blockIdx.x * ROWS;
    let_next_start();

    const unsigned chunks = (k + CHUNK - 1) / CHUNK;
    const unsigned begin = chunks * warp / FEW_WARPS, end = chunks * (warp + 1) / FEW_WARPS;
    const unsigned lane_chunks = (k + CHUNK - 1 - quad * 8) / CHUNK;  // in the last, columns may end before the lane's
    const unsigned stop = min(end, lane_chunks), column = lane_chunks > 0 ? quad * 8 : 0;
    FewSource<HALVES, TILES> source;
    source.last = max(stop, 1u) - 1;
    #pragma unroll
    for (unsigned i = 0; i < TILES; ++i) {
        const unsigned long long row = min(row_first + i * 8 + group, m - 1);
        source.w[i] = reinterpret_cast<const uint4*>(w + row * k + column);
    }
    #pragma unroll
    for (unsigned i = 0; i < HALVES; ++i) {
        const unsigned long long token = min(i * 8 + group, t - 1);
        source.x[i] = reinterpret_cast<const uint4*>(x + token * k + column);
    }

    Chunk<HALVES, TILES> ring[DEPTH];
    #pragma unroll
    for (unsigned d = 0; d < DEPTH; ++d) source.load_w(ring[d], begin + d);
    // Weights are on their way while the kernel that makes x still runs.
    wait_for_previous();
    #pragma unroll
    for (unsigned d = 0; d < DEPTH; ++d) source.load_x(ring[d], begin + d);
    float sums[TILES][4] = {};
    for (unsigned chunk = begin; chunk < end; chunk += DEPTH) {
        #pragma unroll
        for (unsigned d = 0; d < DEPTH; ++d) {
            multiply(sums, ring[d], chunk + d < stop);
            source.load_w(ring[d], chunk + DEPTH + d);
            source.load_x(ring[d], chunk + DEPTH + d);
        }
    }

    #pragma unroll
    for (unsigned i = 0; i < TILES; ++i) {
        #pragma unroll
        for (unsigned half = 0; half < HALVES; ++half) {
            float* to = &partial[warp][half * 8 + group][i * 8 + quad * 2];
            to[0] = sums[i][half * 2];
            to[1] = sums[i][half * 2 + 1];
        }
    }
    __syncthreads();
    const unsigned tokens = min(*rows, TOKENS);
    for (unsigned i = threadIdx.x; i < tokens * ROWS; i += FEW_WARPS * 32) {
        const unsigned token = i / ROWS, row = i % ROWS;
        if (row_first + row < m) {
            float sum = partial[0][token][row];
            #pragma unroll
            for (unsigned other = 1; other < FEW_WARPS; ++other) sum += partial[other][token][row];
            if (bias != nullptr) sum += to_float(bias[row_first + row]);
            y[static_cast<unsigned long long>(token) * m + row_first + row] = sum;
        }
    }
}

#define PRODUCT_FEW(NAME, HALVES, TILES, DEPTH, BLOCKS)                                                              \
    extern "C" __global__ void __launch_bounds__(FEW_WARPS * 32, BLOCKS)                                             \
    NAME(const unsigned* rows, const act* x, const bf16* w, const bf16* bias, float* y, unsigned t, unsigned m,          \
         unsigned k) {                                                                                               \
        constexpr unsigned IN_FLIGHT = DEPTH < DEPTH_MAX ? DEPTH : DEPTH_MAX;                                        \
        product_few<HALVES, TILES, IN_FLIGHT>(rows, x, w, bias, y, t, m, k);                                         \
    }

// Grid: M in blocks of 16 or 8 rows. The 8 keep small shards' multiprocessors busy.
PRODUCT_FEW(product_few_8x16, 1, 2, 4, 3)
PRODUCT_FEW(product_few_8x8, 1, 1, 6, 2)
PRODUCT_FEW(product_few_16x16, 2, 2, 4, 2)
PRODUCT_FEW(product_few_16x8, 2, 1, 5, 2)

// --------------------------------------------------------------------------------------------- product_many

// Rows of 16-byte units of one operand's tile in shared memory, units of a row XOR-swizzled so that eight rows at
// one column lie in different banks.
template <unsigned UNITS>
__device__ __forceinline__ unsigned unit_of(unsigned row, unsigned unit) {
    static_assert(UNITS == 4 || UNITS == 8, "rows of 64 or 128 bytes");
    return row * UNITS + (unit ^ (row / (8 / UNITS) % UNITS));
}

template <unsigned T_TILE, unsigned M_TILE, unsigned K_TILE, unsigned STAGES_ASYNC, unsigned T_WARPS, unsigned M_WARPS>
struct Tiles {
    static constexpr unsigned THREADS = T_WARPS * M_WARPS * 32;
    static constexpr unsigned T_BLOCK = T_TILE, M_BLOCK = M_TILE;
    static constexpr unsigned UNITS = K_TILE / 8;             // of 16 bytes, of a row
    static constexpr unsigned STAGE = (T_TILE + M_TILE) * UNITS;
    static constexpr unsigned SHARE = STAGE / THREADS;        // units that a thread copies
    static constexpr unsigned T_OWN = T_TILE / T_WARPS, M_OWN = M_TILE / M_WARPS;  // of a warp
    static constexpr unsigned T_MMA = T_OWN / 16, M_MMA = M_OWN / 8;
#ifdef ACT_IS_F16
    static constexpr unsigned STAGES = 2;
#else
    static constexpr unsigned STAGES = STAGES_ASYNC;
#endif
    static_assert(STAGE % (2 * THREADS) == 0 && T_OWN % 16 == 0 && M_OWN % 16 == 0, "tiles divide");

    const act* x;
    const bf16* w;
    unsigned tokens, m, k, t_first, m_first;

    // Unit i of a stage: where it comes from in the step at column k0, and whether that exists.
    __device__ __forceinline__ const void* source(unsigned i, unsigned k0, bool& valid) const {
        const unsigned row = i / UNITS, column = k0 + i % UNITS * 8;
        const bool is_token = row < T_TILE;
        const unsigned from = is_token ? t_first + row : m_first + row - T_TILE;
        valid = column < k && from < (is_token ? tokens : m);
        const unsigned long long at = static_cast<unsigned long long>(from) * k + column;
        const void* base = is_token ? static_cast<const void*>(x) : static_cast<const void*>(w);
        return valid ? static_cast<const unsigned short*>(base) + at : base;
    }

    __device__ __forceinline__ static unsigned place(unsigned i) { return unit_of<UNITS>(i / UNITS, i % UNITS); }

    __device__ __forceinline__ void copy(uint4* stage, unsigned k0) const {
        #pragma unroll
        for (unsigned j = 0; j < SHARE; ++j) {
            const unsigned i = threadIdx.x + j * THREADS;
            bool valid;
            const void* from = source(i, k0, valid);
            copy_async_16(stage + place(i), from, valid);
        }
    }

    // The same through registers, half a stage at a time: `fetch` before half a stage is multiplied, `put` after it.
    __device__ __forceinline__ void fetch(uint4 (&held)[SHARE / 2], unsigned half, unsigned k0) const {
        #pragma unroll
        for (unsigned j = 0; j < SHARE / 2; ++j) {
            bool valid;
            const void* from = source(threadIdx.x + (half * (SHARE / 2) + j) * THREADS, k0, valid);
            held[j] = valid ? *static_cast<const uint4*>(from) : zero_16();
        }
    }

    __device__ __forceinline__ void put(uint4* stage, const uint4 (&held)[SHARE / 2], unsigned half) const {
        #pragma unroll
        for (unsigned j = 0; j < SHARE / 2; ++j) {
            const unsigned i = threadIdx.x + (half * (SHARE / 2) + j) * THREADS;
            uint4 v = held[j];
            if (i / UNITS >= T_TILE) {
                v = make_uint4(bf16x2_to_act(v.x), bf16x2_to_act(v.y), bf16x2_to_act(v.z), bf16x2_to_act(v.w));
            }
            stage[place(i)] = v;
        }
    }

    // sums += tokens · weightsᵀ over units begin .. end of a stage.
    __device__ __forceinline__ static void multiply(float (&sums)[T_MMA][M_MMA][4], const uint4* stage, unsigned begin,
                                                    unsigned end) {
        const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const unsigned t_own = warp / M_WARPS * T_OWN, m_own = T_TILE + warp % M_WARPS * M_OWN;
        #pragma unroll
        for (unsigned unit = begin; unit < end; unit += 2) {
            unsigned b[M_MMA][2];
            #pragma unroll
            for (unsigned j = 0; j < M_MMA; j += 2) {
                unsigned two[4];
                const unsigned row = m_own + j * 8 + lane / 16 * 8 + lane % 8;
                ldmatrix_x4(two, stage + unit_of<UNITS>(row, unit + lane / 8 % 2));
                b[j][0] = two[0];
                b[j][1] = two[1];
                b[j + 1][0] = two[2];
                b[j + 1][1] = two[3];
            }
            #pragma unroll
            for (unsigned i = 0; i < T_MMA; ++i) {
                unsigned a[4];
                ldmatrix_x4(a, stage + unit_of<UNITS>(t_own + i * 16 + lane % 16, unit + lane / 16));
                #pragma unroll
                for (unsigned j = 0; j < M_MMA; ++j) mma_act(sums[i][j], a, b[j]);
            }
        }
    }

    __device__ __forceinline__ void sum(float (&sums)[T_MMA][M_MMA][4], uint4* stages) const {
        const unsigned steps = (k + K_TILE - 1) / K_TILE;
#ifdef ACT_IS_F16
        uint4 held[SHARE / 2];
        #pragma unroll
        for (unsigned half = 0; half < 2; ++half) {
            fetch(held, half, 0);
            put(stages, held, half);
        }
        for (unsigned step = 0; step < steps; ++step) {
            __syncthreads();
            #pragma unroll
            for (unsigned half = 0; half < 2; ++half) {
                if (step + 1 < steps) fetch(held, half, (step + 1) * K_TILE);
                multiply(sums, stages + step % 2 * STAGE, half * (UNITS / 2), (half + 1) * (UNITS / 2));
                if (step + 1 < steps) put(stages + (step + 1) % 2 * STAGE, held, half);
            }
        }
#else
        #pragma unroll
        for (unsigned step = 0; step < STAGES - 1; ++step) {
            if (step < steps) copy(stages + step * STAGE, step * K_TILE);
            copy_async_commit();
        }
        for (unsigned step = 0; step < steps; ++step) {
            // This step's stage has arrived, and every warp is done with the one before, which is filled anew.
            copy_async_wait<STAGES - 2>();
            __syncthreads();
            const unsigned ahead = step + STAGES - 1;
            if (ahead < steps) copy(stages + ahead % STAGES * STAGE, ahead * K_TILE);
            copy_async_commit();
            multiply(sums, stages + step % STAGES * STAGE, 0, UNITS);
        }
#endif
    }

    __device__ __forceinline__ void store(const float (&sums)[T_MMA][M_MMA][4], const bf16* bias, float* y) const {
        const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const unsigned t_own = t_first + warp / M_WARPS * T_OWN + lane / 4;
        const unsigned m_own = m_first + warp % M_WARPS * M_OWN + lane % 4 * 2;
        #pragma unroll
        for (unsigned j = 0; j < M_MMA; ++j) {
            const unsigned row = m_own + j * 8;
            const float low = bias != nullptr && row < m ? to_float(bias[row]) : 0.0f;
            const float high = bias != nullptr && row + 1 < m ? to_float(bias[row + 1]) : 0.0f;
            #pragma unroll
            for (unsigned i = 0; i < T_MMA * 2; ++i) {
                const unsigned t = t_own + i * 8;
                float* to = y + static_cast<unsigned long long>(t) * m + row;
                const float2 v = make_float2(sums[i / 2][j][i % 2 * 2] + low, sums[i / 2][j][i % 2 * 2 + 1] + high);
                if (t < tokens && row + 1 < m && m % 2 == 0) {
                    *reinterpret_cast<float2*>(to) = v;
                } else if (t < tokens && row < m) {
                    to[0] = v.x;
                    if (row + 1 < m) to[1] = v.y;
                }
            }
        }
    }
};

template <typename Own>
__device__ __forceinline__ void product_many(const unsigned* rows, const act* x, const bf16* w, const bf16* bias,
                                             float* y, unsigned t, unsigned m, unsigned k) {
    __shared__ __align__(16) uint4 stages[Own::STAGES * Own::STAGE];
    const unsigned t_first = blockIdx.x * Own::T_BLOCK, m_first = blockIdx.y * Own::M_BLOCK;
    let_next_start();
    wait_for_previous();
    const unsigned tokens = min(*rows, t);
    if (t_first >= tokens) return;
    const Own own = {x, w, tokens, m, k, t_first, m_first};
    float sums[Own::T_MMA][Own::M_MMA][4] = {};
    own.sum(sums, stages);
    own.store(sums, bias, y);
}

using Large = Tiles<128, 128, 32, 3, 2, 4>;
using Middle = Tiles<64, 32, 64, 4, 2, 2>;

// Grid: (T in tiles, M in tiles): neighbours share weights, and x, the smaller, comes again from the L2.
#define PRODUCT_MANY(NAME, OWN, BLOCKS)                                                                              \
    extern "C" __global__ void __launch_bounds__(OWN::THREADS, BLOCKS)                                               \
    NAME(const unsigned* rows, const act* x, const bf16* w, const bf16* bias, float* y, unsigned t, unsigned m,          \
         unsigned k) {                                                                                               \
        product_many<OWN>(rows, x, w, bias, y, t, m, k);                                                             \
    }

PRODUCT_MANY(product_many_large, Large, 2)
PRODUCT_MANY(product_many_middle, Middle, 4)

// ------------------------------------------------------------------------------------------------- for cuBLASLt

// A bias as cuBLASLt takes it beside an f32 y. bias: bf16 [M], to: f32 [M].
extern "C" __global__ void widen_bias(const bf16* __restrict__ bias, float* __restrict__ to, unsigned m) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < m) to[i] = to_float(bias[i]);
}
