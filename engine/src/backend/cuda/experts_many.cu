// The experts for many routes each: prompts. A grouped product, a block for 128 rows of W and up to 64 columns of an
// item: its first ones or the others.
//
// Steps of 64 along K: a step's part of W (4 KB packed) and of the columns' activations (8 KB) come by cp.async
// into a ring of stages. The four warps stand below each other, 32 rows and all columns each, so every weight is
// decoded once in a block, in registers, and its two row tiles share each load of activations. Decoded tiles in
// shared memory would cost a store and a load of 4 × the bytes to save nothing. Scales are a byte per row and
// block: read straight from global memory, a step ahead, two a lane.
//
// Tiles of 8 columns that an item does not have are skipped. A step of a warp is 64 mma and, in sm_90's
// assembly, 440 other instructions, of which 128 are fmaf for scales; the mma take 512 clocks or more of a
// quarter of an SM: bound by tensor cores on every card.
// Predicted before a card was at hand, of the rate of mma.sync with f32 sums: 0.6 on the H200 (that rate is 0.6 of wgmma's),
// 0.75 on RTX 4090, 3090.
// Untried: 128 columns in a block. By warpgroup products: experts_wgmma.cu.
//
// | version | card | date | µs gate_up / down at 512, 2048 rows, 20b | 120b |
// |---|---|---|---|---|
// | items of 64 columns | H200 | 2026-11-28 | 573 / 283, 1429 / 774 (0.24 of cuBLASLt's bf16 rate) | 1209 / 522, 1781 / 931 |

constexpr int WARPS = 4, THREADS = WARPS * 32;
constexpr int M_TILES = 2, ROW_TILE = WARPS * M_TILES * 16;
constexpr int N_TILES = 8, COLUMN_TILE = N_TILES * 8;
constexpr int STEP_BLOCKS = 2, STAGES = 3;
constexpr int W_STRIDE = STEP_BLOCKS * 16 + 16; // 8 rows apart by 48 bytes: 8 × 16 bytes in 32 different banks
constexpr int X_STRIDE = STEP_BLOCKS * 64;      // odd columns have their two blocks swapped, for the same reason
constexpr int X_AT = ROW_TILE * W_STRIDE, STAGE_BYTES = X_AT + COLUMN_TILE * X_STRIDE;
constexpr int W_COPIES = ROW_TILE * STEP_BLOCKS / THREADS, X_COPIES = COLUMN_TILE * STEP_BLOCKS * 4 / THREADS;

template <class Shape> struct Many {
    static constexpr int BLOCKS = Shape::COLUMNS / 32;
    static constexpr int STEPS = (BLOCKS + STEP_BLOCKS - 1) / STEP_BLOCKS;
};

// What this thread copies in every step: a block of W in two rows, 16 bytes of four columns.
template <class Args> struct Copies {
    const uint8_t* blocks;
    const f16* activations;
    unsigned w[W_COPIES], x[X_COPIES];

    __device__ Copies(const Args& args, const Weights& weights, const Columns& columns, int row)
        : blocks(weights.blocks), activations(args.x) {
#pragma unroll
        for (int i = 0; i < W_COPIES; i++) {
            // Rows behind the last are copies of it, and are not stored.
            const int at = min(row + (int)threadIdx.x / 2 + i * (THREADS / 2), Args::ROWS - 1);
            w[i] = (at * Many<Args>::BLOCKS + threadIdx.x % 2) * 16;
        }
#pragma unroll
        for (int i = 0; i < X_COPIES; i++) {
            x[i] = args.offset(columns, threadIdx.x / 8 + i * (THREADS / 8)) + threadIdx.x % 8 * 8;
        }
    }

    // Zeros behind the end of a row.
    __device__ void start(char* stage, int step) const {
        const bool w_there = step * STEP_BLOCKS + (int)threadIdx.x % 2 < Many<Args>::BLOCKS;
        const bool x_there = step * STEP_BLOCKS + (int)threadIdx.x % 8 / 4 < Many<Args>::BLOCKS;
#pragma unroll
        for (int i = 0; i < W_COPIES; i++) {
            char* to = stage + (threadIdx.x / 2 + i * (THREADS / 2)) * W_STRIDE + threadIdx.x % 2 * 16;
            copy_async_16(to, blocks + w[i] + step * STEP_BLOCKS * 16, w_there);
        }
#pragma unroll
        for (int i = 0; i < X_COPIES; i++) {
            const int column = threadIdx.x / 8 + i * (THREADS / 8), part = threadIdx.x % 8 ^ column % 2 * 4;
            copy_async_16(stage + X_AT + column * X_STRIDE + part * 16, activations + x[i] + step * STEP_BLOCKS * 32, x_there);
        }
    }
};

// The scales of a step: block t % 2 of rows g and g + 8 of this warp's row tile t / 2.
template <class Args> struct Scales {
    const uint8_t* scales;
    unsigned of[2];

    __device__ Scales(const Weights& weights, int row) : scales(weights.scales) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int at = min(row + t / 2 * 16 + g + 8 * i, Args::ROWS - 1);
            of[i] = at * Many<Args>::BLOCKS + t % 2;
        }
    }
    // Both in one register, for a step later.
    __device__ unsigned read(int step) const {
        if (step * STEP_BLOCKS + (int)threadIdx.x % 2 >= Many<Args>::BLOCKS) return 0; // of weights that are zero
        return scales[of[0] + step * STEP_BLOCKS] | scales[of[1] + step * STEP_BLOCKS] << 8;
    }
};

__device__ inline void finish(const float (&sum)[M_TILES][N_TILES][4], const GateUpArgs& args, const Weights& weights,
                              const Columns& columns, int row) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Row g is a gate in lanes with g even, an up in the others: of two columns each keeps one, and gets the other half of it.
            const int at = row + m * 16 + half * 8 + g;
            const float bias = at < GateUp::ROWS ? weights.bias_of(at) : 0.0f;
#pragma unroll
            for (int n = 0; n < N_TILES; n++) {
                const float left = sum[m][n][2 * half] * UNSCALE + bias, right = sum[m][n][2 * half + 1] * UNSCALE + bias;
                const float other = __shfl_xor_sync(ALL, g % 2 ? left : right, 4);
                const unsigned column = n * 8 + 2 * t + g % 2;
                if (at >= GateUp::ROWS || column >= columns.count) continue;
                args.store(columns, column, at / 2, g % 2 ? other : left, g % 2 ? right : other);
            }
        }
    }
}

__device__ inline void finish(const float (&sum)[M_TILES][N_TILES][4], const DownArgs& args, const Weights& weights,
                              const Columns& columns, int row) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N_TILES; n++) {
#pragma unroll
        for (int right = 0; right < 2; right++) {
            const unsigned column = n * 8 + 2 * t + right;
            if (column >= columns.count) continue;
            const unsigned route = columns.route(column);
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int at = row + m * 16 + half * 8 + g;
                    if (at >= Down::ROWS) continue;
                    args.store(route, at, sum[m][n][2 * half + right] * UNSCALE + weights.bias_of(at));
                }
            }
        }
    }
}

template <class Args>
__device__ void product_many(const Args& args, const unsigned* sorted, const uint4* items, const unsigned* item_count) {
    DYNAMIC_SHARED(char, shared);
    if (blockIdx.y >= *item_count) return;
    uint4 item = items[blockIdx.y];
    if (blockIdx.z * COLUMN_TILE >= item.z) return;
    item.y += blockIdx.z * COLUMN_TILE, item.z = min(item.z - blockIdx.z * COLUMN_TILE, (unsigned)COLUMN_TILE);
    const Columns columns(sorted, item);
    const Weights weights = args.weights.template of<Args>(columns.expert);
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp_row = threadIdx.x / 32 * M_TILES * 16;
    const int row = blockIdx.x * ROW_TILE;
    constexpr int STEPS = Many<Args>::STEPS;

    const Copies<Args> copies(args, weights, columns, row);
    const Scales<Args> scales(weights, row + warp_row);
#pragma unroll
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < STEPS) copies.start(shared + step * STAGE_BYTES, step);
        copy_async_commit();
    }
    unsigned next_scales = scales.read(0);
    float sum[M_TILES][N_TILES][4] = {};
    int at = 0; // of the step's stage in the ring
    for (int step = 0; step < STEPS; step++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads(); // the step has come, and all have done with the slot that is filled next
        const char* stage = shared + at;
        const int ahead = step + STAGES - 1, behind = (at == 0 ? STAGES * STAGE_BYTES : at) - STAGE_BYTES;
        if (ahead < STEPS) copies.start(shared + behind, ahead);
        copy_async_commit();
        at = at == (STAGES - 1) * STAGE_BYTES ? 0 : at + STAGE_BYTES;
        const float scale = mxfp4_scale(next_scales & 0xff), scale_8 = mxfp4_scale(next_scales >> 8);
        if (step + 1 < STEPS) next_scales = scales.read(step + 1);

#pragma unroll
        for (int block = 0; block < STEP_BLOCKS; block++) {
            unsigned first[M_TILES][4], second[M_TILES][4];
            float scale_g[M_TILES], scale_g_8[M_TILES];
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                const char* word = stage + (warp_row + 16 * m + g) * W_STRIDE + block * 16 + t * 4;
                decode(first[m], second[m], *(const unsigned*)word, *(const unsigned*)(word + 8 * W_STRIDE));
                scale_g[m] = __shfl_sync(ALL, scale, 2 * m + block, 4);
                scale_g_8[m] = __shfl_sync(ALL, scale_8, 2 * m + block, 4);
            }
            const char* x = stage + X_AT + g * X_STRIDE + ((block * 4 + t) ^ g % 2 * 4) * 16;
#pragma unroll
            for (int n = 0; n < N_TILES; n++) {
                if (n * 8 >= columns.count) break;
                const uint4 b = *(const uint4*)(x + n * 8 * X_STRIDE);
#pragma unroll
                for (int m = 0; m < M_TILES; m++) add_block(sum[m][n], first[m], second[m], b, scale_g[m], scale_g_8[m]);
            }
        }
    }
    copy_async_wait<0>();
    finish(sum, args, weights, columns, row + warp_row);
}

// grid (⌈2I / ROW_TILE⌉, items at most, ⌈columns of an item / COLUMN_TILE⌉)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
gate_up_many(const uint8_t* blocks, const uint8_t* scales, const bf16* bias, const f16* x, const unsigned* sorted,
             const uint4* items, const unsigned* item_count, float limit, f16* a) {
    product_many(GateUpArgs{{}, {blocks, scales, bias}, x, limit, a}, sorted, items, item_count);
}

// grid (⌈H / ROW_TILE⌉, items at most, ⌈columns of an item / COLUMN_TILE⌉)
extern "C" __global__ void __launch_bounds__(THREADS, 1)
down_many(const uint8_t* blocks, const uint8_t* scales, const bf16* bias, const f16* a, const unsigned* sorted,
          const uint4* items, const unsigned* item_count, const float* router, float* slots) {
    product_many(DownArgs{{}, {blocks, scales, bias}, a, router, slots}, sorted, items, item_count);
}
