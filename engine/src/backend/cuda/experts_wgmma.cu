// The experts for many routes each, by the warpgroup products of Hopper (sm_90a): prompts. A grouped product as in
// experts_many.cu, a block for ROW_TILE rows of W and an item of up to 128 columns.
//
// W is decoded in registers, which wgmma takes its A operand from; activations come by cp.async to swizzled places
// of shared memory, where wgmma finds B. The products of a block of 32 run while the next one is decoded: two sets
// of registers, one group of products a set. A lane decodes one word of a row, eight values; in a product lane t
// has, of each 8 values of K, the two at 2t. So activations lie in another order here than for mma ("pairs" in
// route.cu): of a block of 32 the four 16-byte pieces are the pairs (0, 4), (1, 5), (2, 6), (3, 7) of all four
// words, and a tile of 64 rows of gate_up makes one such block of `a`.
//
// Scales are multiplied into the decoded values: f16 · 2^-14 times 2^(s - 113) is the weight itself, without any
// rounding, while the scale s is one of 104 to 127: from there 0.5 · 2^(s - 127) is no less than f16's least
// value, and the factor is one of f16's normal ones. That is one product of f16 pairs for each register of A, 8
// instructions a thread and 64 × 32 weights, whatever the number of columns; sums scaled in f32 would cost N / 2
// and as many registers. A block whose tile of W has another scale anywhere goes by sum_exactly: the products of 32
// of K start at zero and are multiplied in f32. All scales of a tile come to shared memory first, to be looked at.
//
// A block takes the next of 32, 64, 96, 128 columns to what its item has. A step is 64 of K: 16 KB of activations
// and ROW_TILE · 32 bytes of W.
//
// Counted in sm_90a's assembly, 2 warpgroups of 2 tiles and 128 columns: a step of a warp is 8 wgmma, which take 512
// clocks of the SM's matrix units (1024 for both warpgroups), and 236 other instructions: 480 a quarter of an SM. It
// copies 24 KB, 23 bytes a clock and SM, from L2; 128 rows of W would ask for 40.
// Predicted, not measured (H200, 1.755 GHz, 2048 rows): 20b gate_up 480 µs, down 260 µs, of which products at full
// rate, columns rounded up, are 311 and 162; 120b, 64 routes an expert, 520 and 290 µs. A block's beginning and end
// (scales, two round trips, swiglu) are a seventh, and nothing overlaps them.
// Untried: blocks that stay and begin the next item while they end one; 80 columns; TMA for W.
//
// | version | card | date | TFLOP/s at 512, 2048 rows |
// |---|---|---|---|
//
// Macros beside those of experts.cu: WARPGROUPS and M_TILES (tiles of 64 rows of a warpgroup), STAGES of the ring,
// BLOCKS_OF_SM, ALWAYS_EXACT.

#include "wgmma.cuh"

constexpr int THREADS = WARPGROUPS * 128, ROW_TILE = WARPGROUPS * M_TILES * 64, COLUMNS_MAX = 128;
constexpr int STEP_BLOCKS = 2;
constexpr int X_BYTES = COLUMNS_MAX * 128, STAGE_BYTES = X_BYTES + ROW_TILE * 32;
constexpr int SCALES_AT = STAGES * STAGE_BYTES;
static_assert(STAGE_BYTES % 1024 == 0, "a tile of activations begins at a multiple of 1024");

template <class Shape> struct Tall {
    static constexpr int BLOCKS = Shape::COLUMNS / 32;
    static constexpr int STEPS = (BLOCKS + STEP_BLOCKS - 1) / STEP_BLOCKS;
};

// Where this lane's word of a row's block lies in a stage. Rows 4 apart have their two blocks swapped: a warp reads a
// word of 8 rows, all from different banks.
__device__ inline int w_word(int row, int block) {
    return X_BYTES + row * 32 + (block ^ (row / 4 % 2)) * 16 + threadIdx.x % 4 * 4;
}

// The ring, from a multiple of 1024: the launch gives 1024 bytes more.
__device__ inline char* ring_in(char* shared) { return shared + (-(size_t)shared & 1023); }

// What this thread copies in every step: a block of W in M_TILES rows, and 16 bytes of each of some columns.
template <class Args, int N> struct TallCopies {
    static constexpr int X_COPIES = (N * 8 + THREADS - 1) / THREADS;
    const uint8_t* blocks;
    const f16* activations;
    unsigned w[M_TILES], x[X_COPIES];

    __device__ TallCopies(const Args& args, const Weights& weights, const Columns& columns, int row)
        : blocks(weights.blocks), activations(args.x) {
#pragma unroll
        for (int i = 0; i < M_TILES; i++) {
            // Rows behind the last are copies of it, and are not stored.
            const int at = min(row + (int)threadIdx.x / 2 + i * (THREADS / 2), Args::ROWS - 1);
            w[i] = (at * Tall<Args>::BLOCKS + threadIdx.x % 2) * 16;
        }
#pragma unroll
        for (int i = 0; i < X_COPIES; i++) {
            x[i] = args.offset(columns, threadIdx.x / 8 + i * (THREADS / 8)) + threadIdx.x % 8 * 8;
        }
    }

    // Zeros behind the end of a row.
    __device__ void start(char* stage, int step) const {
        const bool w_there = step * STEP_BLOCKS + (int)threadIdx.x % 2 < Tall<Args>::BLOCKS;
        const bool x_there = step * STEP_BLOCKS + (int)threadIdx.x % 8 / 4 < Tall<Args>::BLOCKS;
#pragma unroll
        for (int i = 0; i < M_TILES; i++) {
            const int row = threadIdx.x / 2 + i * (THREADS / 2);
            copy_async_16(stage + w_word(row, threadIdx.x % 2) - threadIdx.x % 4 * 4, blocks + w[i] + step * STEP_BLOCKS * 16, w_there);
        }
#pragma unroll
        for (int i = 0; i < X_COPIES; i++) {
            const int column = threadIdx.x / 8 + i * (THREADS / 8);
            if (N % (THREADS / 8) != 0 && column >= N) continue;
            char* to = stage + wgmma_piece(column, threadIdx.x % 8);
            copy_async_16(to, activations + x[i] + step * STEP_BLOCKS * 32, x_there);
        }
    }
};

// All scales of the tile's rows, [ROW_TILE][BLOCKS].
template <class Args> struct TileScales {
    static constexpr int BLOCKS = Tall<Args>::BLOCKS;
    uint8_t* scales;
    int bytes;

    __device__ TileScales(char* ring, int row)
        : scales((uint8_t*)ring + SCALES_AT), bytes(min(ROW_TILE, Args::ROWS - row) * BLOCKS) {}

    __device__ void start(const Weights& weights, int row) const {
        for (int at = threadIdx.x * 16; at < bytes; at += THREADS * 16) {
            copy_async_16(scales + at, weights.scales + (size_t)row * BLOCKS + at);
        }
    }
    // Of this thread's part: is each one of 104 to 127?
    __device__ bool fold() const {
        unsigned all = 0x80808080u;
        for (int at = threadIdx.x * 16; at < bytes; at += THREADS * 16) {
            const uint4 four = *(const uint4*)(scales + at);
            // Without a carry from byte to byte where all are below 128; elsewhere ~ says no.
            all &= (four.x + 0x18181818u) & ~four.x & (four.y + 0x18181818u) & ~four.y;
            all &= (four.z + 0x18181818u) & ~four.z & (four.w + 0x18181818u) & ~four.w;
        }
        return all == 0x80808080u;
    }
    __device__ unsigned of(int row, int block) const {
        return scales[row * BLOCKS + min(block, BLOCKS - 1)]; // behind the end weights are zero
    }
};

// 2^(s - 113) twice, for s from 104 to 127.
__device__ inline unsigned fold_factor(unsigned scale) { return scale * 0x04000400u - 98u * 0x04000400u; }

// The A operands of a block for one tile of 64 rows.
struct Operand {
    unsigned first[4], second[4];

    __device__ void scale(unsigned scale_g, unsigned scale_g_8) {
        const unsigned factor[2] = {fold_factor(scale_g), fold_factor(scale_g_8)};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            first[i] = mul_f16x2(first[i], factor[i % 2]);
            second[i] = mul_f16x2(second[i], factor[i % 2]);
        }
    }
};

// One block of all the warpgroup's tiles. `row`: of this lane's row g of its first tile, in the block's tile.
struct Operands {
    Operand of[M_TILES];

    // With scales, where `FOLD`.
    template <bool FOLD, class Args>
    __device__ void load(const char* stage, const TileScales<Args>& scales, int row, int step, int block) {
        unsigned word[M_TILES][2], scale[M_TILES][2];
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int at = row + m * 64 + half * 8;
                word[m][half] = *(const unsigned*)(stage + w_word(at, block));
                if (FOLD) scale[m][half] = scales.of(at, step * STEP_BLOCKS + block);
            }
        }
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
            decode(of[m].first, of[m].second, word[m][0], word[m][1]);
            if (FOLD) of[m].scale(scale[m][0], scale[m][1]);
        }
    }
    // Starts sum += the block's products.
    template <int N> __device__ void multiply(float (&sum)[M_TILES][N / 2], const char* stage, int block) const {
        wgmma_fence();
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
            wgmma_f16(sum[m], of[m].first, stage + block * 64, true);
            wgmma_f16(sum[m], of[m].second, stage + block * 64 + 32, true);
        }
        wgmma_commit();
    }
};

// The ring of stages, as a loop over steps sees it.
template <class Args, int N> struct Ring {
    static constexpr int STEPS = Tall<Args>::STEPS;
    // Steps that are on their way when one begins, beside the next: that one's weights are decoded ahead.
    static constexpr int BEHIND_NEXT = STAGES - 4;
    static_assert(BEHIND_NEXT >= 0, "a ring has at least four stages");
    char* ring;
    const TallCopies<Args, N>& copies;
    // Where the stages of this step and of the one that is copied next lie. A remainder by STAGES would take longer.
    int at = 0, fill_at = 0;

    __device__ static int after(int at) { return at == (STAGES - 1) * STAGE_BYTES ? 0 : at + STAGE_BYTES; }
    __device__ const char* now() const { return ring + at; }
    __device__ const char* next() const { return ring + after(at); }
    __device__ void advance() { at = after(at); }

    __device__ void begin() {
#pragma unroll
        for (int step = 0; step < STAGES - 2; step++) start(step);
    }
    __device__ void start(int step) {
        if (step < STEPS) copies.start(ring + fill_at, step);
        copy_async_commit();
        fill_at = after(fill_at);
    }
    // This step and the next have come, and nobody's products read the step before the last any more.
    __device__ void wait() const {
        copy_async_wait<BEHIND_NEXT>();
        fence_async_proxy();
        __syncthreads();
    }
};

// sum [M_TILES][N / 2] = W x, scales multiplied into weights.
template <int N, class Args>
__device__ inline void sum_folded(float (&sum)[M_TILES][N / 2], Ring<Args, N>& ring, const TileScales<Args>& scales, int row) {
    // Products read one while the other is decoded. The first block of a step is decoded before its barrier: behind it
    // all start at once.
    Operands even, odd;
    even.template load<true>(ring.now(), scales, row, 0, 0);
    for (int step = 0; step < Ring<Args, N>::STEPS; step++) {
        ring.wait();
        const char* stage = ring.now();
        even.template multiply<N>(sum, stage, 0);
        ring.start(step + STAGES - 2);
        wgmma_wait<1>(); // those that read `odd`
        odd.template load<true>(stage, scales, row, step, 1);
        odd.template multiply<N>(sum, stage, 1);
        wgmma_wait<1>(); // those that read `even`
        if (step + 1 < Ring<Args, N>::STEPS) even.template load<true>(ring.next(), scales, row, step + 1, 0);
        ring.advance();
    }
    wgmma_wait<0>();
#pragma unroll
    for (int m = 0; m < M_TILES; m++) wgmma_hold(sum[m]);
}

// sum += scale · (block · x), one tile, 32 columns at a time.
template <int N>
__device__ inline void add_exactly(float (&sum)[N / 2], const Operand& a, const char* slice, float scale_g, float scale_g_8) {
#pragma unroll
    for (int part = 0; part < N / 32; part++) {
        float dot[16];
        wgmma_hold(dot);
        wgmma_fence();
        wgmma_f16(dot, a.first, slice + part * 32 * 128, false);
        wgmma_f16(dot, a.second, slice + part * 32 * 128 + 32, true);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(dot);
#pragma unroll
        for (int i = 0; i < 16; i++) sum[part * 16 + i] = fmaf(dot[i] * UNSCALE, i % 4 < 2 ? scale_g : scale_g_8, sum[part * 16 + i]);
    }
}

// The same for any scales, not for speed.
template <int N, class Args>
__device__ inline void sum_exactly(float (&sum)[M_TILES][N / 2], Ring<Args, N>& ring, const TileScales<Args>& scales, int row) {
    Operands a;
    for (int step = 0; step < Ring<Args, N>::STEPS; step++) {
        ring.wait();
        ring.start(step + STAGES - 2);
#pragma unroll 1
        for (int block = 0; block < STEP_BLOCKS; block++) {
            a.template load<false>(ring.now(), scales, row, step, block);
            const char* slice = ring.now() + block * 64;
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                const unsigned scale_g = scales.of(row + m * 64, step * STEP_BLOCKS + block);
                const unsigned scale_g_8 = scales.of(row + m * 64 + 8, step * STEP_BLOCKS + block);
                add_exactly<N>(sum[m], a.of[m], slice, mxfp4_scale(scale_g), mxfp4_scale(scale_g_8));
            }
        }
        ring.advance();
    }
}

// As swiglu in experts.cu, by the card's quick exponential and division: off by less than f16 rounds.
__device__ inline float quick_swiglu(float gate, float up, float limit) {
    const float g = fminf(gate, limit), u = fmaxf(-limit, fminf(up, limit));
    return (u + 1.0f) * __fdividef(g, 1.0f + __expf(-1.702f * g));
}

// Through the ring: what a block has of a column of `a` is ROW_TILE bytes on end.
template <int N>
__device__ inline void finish(const float (&sum)[M_TILES][N / 2], char* ring, const GateUpArgs& args, const Weights& weights,
                              const Columns& columns, int row, int row_in_tile) {
    constexpr int STRIDE = ROW_TILE + 16;
    static_assert(N * STRIDE <= STAGES * STAGE_BYTES, "it takes the place of the ring");
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32 % 4;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
        const int in_tile = row_in_tile + m * 64, at = row + in_tile;
        const float bias = at < GateUp::ROWS ? weights.bias_of(at) : 0.0f, bias_8 = at < GateUp::ROWS ? weights.bias_of(at + 8) : 0.0f;
        // Rows 16 w + g and + 8 of a tile: element 8 w + g / 2 of a block of 32, and + 4. Together they are a pair, w
        // says of which word, g / 2 in which piece.
        char* to = ring + (2 * t + g % 2) * STRIDE + in_tile / 64 * 64 + g / 2 * 16 + warp * 4;
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            const float* four = sum[m] + 4 * n;
            // Row g is a gate in lanes with g even, an up in the others: of two columns each keeps one, and gets the other half of it.
            const float left = four[0] + bias, right = four[1] + bias, left_8 = four[2] + bias_8, right_8 = four[3] + bias_8;
            const float mine = g % 2 ? right : left, mine_8 = g % 2 ? right_8 : left_8;
            const float other = __shfl_xor_sync(ALL, g % 2 ? left : right, 4);
            const float other_8 = __shfl_xor_sync(ALL, g % 2 ? left_8 : right_8, 4);
            const float gate = g % 2 ? other : mine, up = g % 2 ? mine : other;
            const float gate_8 = g % 2 ? other_8 : mine_8, up_8 = g % 2 ? mine_8 : other_8;
            *(unsigned*)(to + n * 8 * STRIDE) = pack_f16(quick_swiglu(gate, up, args.limit), quick_swiglu(gate_8, up_8, args.limit));
        }
    }
    __syncthreads();
    constexpr int PIECES = ROW_TILE / 16;
    for (unsigned i = threadIdx.x; i < columns.count * PIECES; i += THREADS) {
        const unsigned column = i / PIECES, j = row / 2 + i % PIECES * 8;
        if (j >= I) continue;
        *(uint4*)(args.a + (size_t)columns.position(column) * I + j) = *(const uint4*)(ring + column * STRIDE + i % PIECES * 16);
    }
}

template <int N>
__device__ inline void finish(const float (&sum)[M_TILES][N / 2], char*, const DownArgs& args, const Weights& weights,
                              const Columns& columns, int row, int row_in_tile) {
    const int t = threadIdx.x % 4;
    float bias[M_TILES][2];
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) bias[m][half] = weights.bias_of(min(row + row_in_tile + m * 64 + half * 8, Down::ROWS - 1));
    }
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
#pragma unroll
        for (int right = 0; right < 2; right++) {
            const unsigned column = n * 8 + 2 * t + right;
            if (column >= columns.count) continue;
            const unsigned route = columns.route(column);
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int at = row + row_in_tile + m * 64 + half * 8;
                    if (at < Down::ROWS) args.store(route, at, sum[m][4 * n + 2 * half + right] + bias[m][half]);
                }
            }
        }
    }
}

template <int N, class Args>
__device__ inline void product(const Args& args, const Columns& columns, char* shared, unsigned& any_exact) {
    const Weights weights = args.weights.template of<Args>(columns.expert);
    const int row = blockIdx.x * ROW_TILE;
    const int own_row = threadIdx.x / 128 * M_TILES * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const TallCopies<Args, N> copies(args, weights, columns, row);
    const TileScales<Args> scales(shared, row);
    Ring<Args, N> ring{shared, copies};
    if (threadIdx.x == 0) any_exact = ALWAYS_EXACT;
    scales.start(weights, row);
    ring.begin();
    float sum[M_TILES][N / 2] = {};
    copy_async_wait<STAGES - 3>();
    __syncthreads(); // the scales have come, and the first step
    if (!scales.fold()) any_exact = 1;
    __syncthreads();
    if (any_exact) {
        sum_exactly<N>(sum, ring, scales, own_row);
    } else {
        sum_folded<N>(sum, ring, scales, own_row);
    }
    copy_async_wait<0>();
    __syncthreads(); // the ring is free
    finish<N>(sum, shared, args, weights, columns, row, own_row);
}

template <class Args>
__device__ void product_wgmma(const Args& args, const unsigned* sorted, const uint4* items, const unsigned* item_count) {
    DYNAMIC_SHARED(char, shared);
    if (blockIdx.y >= *item_count) return;
    const Columns columns(sorted, items[blockIdx.y]);
    __shared__ unsigned any_exact;
    char* ring = ring_in(shared);
    switch ((columns.count + 31) / 32) {
    case 1: return product<32>(args, columns, ring, any_exact);
    case 2: return product<64>(args, columns, ring, any_exact);
    case 3: return product<96>(args, columns, ring, any_exact);
    default: return product<128>(args, columns, ring, any_exact);
    }
}

// grid (⌈2I / ROW_TILE⌉, items at most)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_OF_SM)
gate_up_wgmma(const uint8_t* blocks, const uint8_t* scales, const bf16* bias, const f16* x, const unsigned* sorted,
              const uint4* items, const unsigned* item_count, float limit, f16* a) {
    product_wgmma(GateUpArgs{{}, {blocks, scales, bias}, x, limit, a}, sorted, items, item_count);
}

// grid (⌈H / ROW_TILE⌉, items at most)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_OF_SM)
down_wgmma(const uint8_t* blocks, const uint8_t* scales, const bf16* bias, const f16* a, const unsigned* sorted,
           const uint4* items, const unsigned* item_count, const float* router, float* slots) {
    product_wgmma(DownArgs{{}, {blocks, scales, bias}, a, router, slots}, sorted, items, item_count);
}
