// Which experts a row takes, with what weight, and the rows of each expert behind each other.
//
//   router_logits   f32 h [T, H], bf16 W [E, H], b [E] → f32 logits [T, E]
//                   and f16 arranged [T, H]: h for the expert kernels, see `arrange`; `pairs` says for which
//   choose          logits → u16 chosen [T, K], f32 weights [T, K]
//   sort_by_expert  chosen → u32 sorted [n], items [n_items][4], item_count [1]
//   choose_and_sort both in one launch, for few rows
//
// Macros: HIDDEN, EXPERT_COUNT, PER_TOKEN; EXPERT_FIRST..EXPERT_END, the rank's own experts. H is a multiple of
// 32, E ≤ 256, K ≤ 8.
//
// A route is t · K + k, the k-th expert of row t. `sorted` holds the routes that the rank computes, by (expert,
// row); an item is {own expert, first, count ≤ item_routes, 0} of `sorted`. Rows at and past *rows have no
// routes.
//
// The logits have the same bits as `Kernels::fixed_order_product` on a CPU: element i goes into lane i mod 16 by
// one fused multiply-add, lanes l and l + 8 are added, l and l + 4, l + 2, l + 1, the bias last. So 16 threads
// are one sum, and walk through tiles of W and h in shared memory, which cp.async fills ahead of them. Two
// shapes of a block: 4 experts × 1 row while rows are few (latency is all), 32 experts × 8 rows for prompts.
//
// Sorting is a counting sort by one block: a warp counts and later places its stretch of the routes, 32 at a
// time; which lanes have the same expert is found by a ballot for each bit of it. No atomics: the order is that
// of the routes.
//
// Of few rows all that a block needs of a row is on its way at once, W before the kernel ahead has ended.
// Predicted, not measured (H200): 5 µs of both launches at T = 1, 9 at 32 (20b).
//
// | version | card | date | µs of both, T = 1, 8, 32, 2048, 20b | 120b |
// |---|---|---|---|---|
// | chunks of 1024 in two stages, 8 experts a block, choice by shuffles, one row sorted as many | H200 | 2026-11-28 | 7.9, 8.2, 31.0, 63.6 | 9.2, 9.2, 31.9, 120.2 |

#include "intrinsics.cuh"

constexpr int H = HIDDEN, E = EXPERT_COUNT, K = PER_TOKEN;

constexpr int LANES = 16;         // of one sum
constexpr unsigned ALL = 0xffffffffu;

// Where element i of eight lies in the activations of the experts: pairs (j, j + 4) together, as decoding MXFP4 gives them.
__device__ inline uint4 arrange(const float (&x)[8]) {
    return make_uint4(pack_f16(x[0], x[4]), pack_f16(x[1], x[5]), pack_f16(x[2], x[6]), pack_f16(x[3], x[7]));
}

// The eight from `at` on of a row. `pairs`: not behind each other, but of each block of 32 first all (0, 4), then all
// (1, 5), (2, 6), (3, 7), as experts_wgmma.cu reads them.
__device__ inline void store_arranged(f16* row, int at, const float (&x)[8], bool pairs) {
    const uint4 words = arrange(x);
    if (!pairs) {
        *(uint4*)(row + at) = words;
        return;
    }
    unsigned* to = (unsigned*)(row + at / 32 * 32) + at % 32 / 8;
    to[0] = words.x, to[4] = words.y, to[8] = words.z, to[12] = words.w;
}

// ---------------------------------------------------------------- logits

// A block: THREADS / LANES · EG experts, TG rows, CHUNK elements of H at a time.
template <int THREADS, int EG, int TG, int CHUNK, int STAGES> struct LogitTile {
    static constexpr int EXPERTS = THREADS / LANES * EG;
    static constexpr int W_STRIDE = CHUNK * 2 + 32; // bytes; two groups of a warp read different banks
    static constexpr int X_STRIDE = CHUNK * 4;
    static constexpr int STAGE_BYTES = EXPERTS * W_STRIDE + TG * X_STRIDE;
    static constexpr int BYTES = STAGES * STAGE_BYTES;

    __device__ static void load_w(char* stage, const bf16* w, int expert, int from) {
        const int n = min(CHUNK, H - from);
        for (int i = threadIdx.x; i < EXPERTS * (CHUNK / 8); i += THREADS) {
            const int e = i / (CHUNK / 8), at = i % (CHUNK / 8) * 8;
            if (at < n && expert + e < E) {
                copy_async_16(stage + e * W_STRIDE + at * 2, w + (size_t)(expert + e) * H + from + at);
            }
        }
    }
    __device__ static void load_x(char* stage, const float* h, int row, int rows, int from) {
        const int n = min(CHUNK, H - from);
        char* x = stage + EXPERTS * W_STRIDE;
        for (int i = threadIdx.x; i < TG * (CHUNK / 4); i += THREADS) {
            const int t = i / (CHUNK / 4), at = i % (CHUNK / 4) * 4;
            if (at < n && row + t < rows) copy_async_16(x + t * X_STRIDE + at * 4, h + (size_t)(row + t) * H + from + at);
        }
    }
};

// The rows row..row + TG for the experts, as f16 in the experts' order.
template <int THREADS, int TG> __device__ void arrange_rows(const float* h, f16* arranged, int row, int rows, bool pairs) {
    constexpr int AT_ONCE = 3;
    const int count = min(TG, rows - row) * (H / 8);
    const float* from = h + (size_t)row * H;
    f16* to = arranged + (size_t)row * H;
    for (int first = threadIdx.x; first < count; first += AT_ONCE * THREADS) {
        float4 x[AT_ONCE][2];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const float4* eight = (const float4*)(from + min(first + i * THREADS, count - 1) * 8);
            x[i][0] = eight[0], x[i][1] = eight[1];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const float4 a = x[i][0], b = x[i][1];
            const float eight[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
            const int at = (first + i * THREADS) * 8;
            if (first + i * THREADS < count) store_arranged(to, at, eight, pairs);
        }
    }
}

template <int THREADS, int EG, int TG, int CHUNK, int STAGES>
__device__ void logits_of(const float* h, const bf16* w, const bf16* bias, const unsigned* row_count, bool pairs,
                          float* logits, f16* arranged) {
    using Tile = LogitTile<THREADS, EG, TG, CHUNK, STAGES>;
    constexpr int CHUNKS = (H + CHUNK - 1) / CHUNK;
    DYNAMIC_SHARED(char, shared);
    let_next_start();
    const int rows = *row_count, row = blockIdx.y * TG;
    const bool arranges = blockIdx.x == gridDim.x - 1;
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES, expert = blockIdx.x * Tile::EXPERTS;
    // Weights are on their way while the kernel that makes h still runs.
    for (int c = 0; c < STAGES - 1; c++) {
        if (c < CHUNKS && !arranges && row < rows) Tile::load_w(shared + c * Tile::STAGE_BYTES, w, expert, c * CHUNK);
    }
    wait_for_previous();
    if (row >= rows) return;
    if (arranges) return arrange_rows<THREADS, TG>(h, arranged, row, rows, pairs);

    for (int c = 0; c < STAGES - 1; c++) {
        if (c < CHUNKS) Tile::load_x(shared + c * Tile::STAGE_BYTES, h, row, rows, c * CHUNK);
        copy_async_commit();
    }
    float sum[EG][TG] = {};
    for (int c = 0; c < CHUNKS; c++) {
        const int next = c + STAGES - 1;
        if (next < CHUNKS) {
            char* stage = shared + next % STAGES * Tile::STAGE_BYTES;
            Tile::load_w(stage, w, expert, next * CHUNK);
            Tile::load_x(stage, h, row, rows, next * CHUNK);
        }
        copy_async_commit();
        copy_async_wait<STAGES - 1>();
        __syncthreads();
        const char* stage = shared + c % STAGES * Tile::STAGE_BYTES;
        const char* w_at = stage + group * EG * Tile::W_STRIDE + lane * 2;
        const char* x_at = stage + Tile::EXPERTS * Tile::W_STRIDE + lane * 4;
        const int steps = min(CHUNK, H - c * CHUNK) / LANES;
#pragma unroll 4
        for (int s = 0; s < steps; s++) {
            float x[TG];
#pragma unroll
            for (int t = 0; t < TG; t++) x[t] = *(const float*)(x_at + t * Tile::X_STRIDE + s * LANES * 4);
#pragma unroll
            for (int e = 0; e < EG; e++) {
                const float we = to_float(*(const bf16*)(w_at + e * Tile::W_STRIDE + s * LANES * 2));
#pragma unroll
                for (int t = 0; t < TG; t++) sum[e][t] = __fmaf_rn(we, x[t], sum[e][t]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int e = 0; e < EG; e++) {
        const int own = expert + group * EG + e;
#pragma unroll
        for (int t = 0; t < TG; t++) {
            // a + b is b + a, so lane 0 of the butterfly has the bits of the fold.
            float s = sum[e][t];
#pragma unroll
            for (int half = LANES / 2; half > 0; half /= 2) s = __fadd_rn(s, __shfl_xor_sync(ALL, s, half));
            if (lane == 0 && own < E && row + t < rows) {
                logits[(size_t)(row + t) * E + own] = __fadd_rn(s, to_float(bias[own]));
            }
        }
    }
}

// grid (⌈E / 4⌉ + 1, T): the last column of blocks arranges h. All of a row of gpt-oss is on its way at once.
extern "C" __global__ void __launch_bounds__(64)
router_logits_few(const float* h, const bf16* w, const bf16* bias, const unsigned* rows, unsigned pairs, float* logits,
                  f16* arranged) {
    logits_of<64, 1, 1, 960, 4>(h, w, bias, rows, pairs != 0, logits, arranged);
}

// grid (⌈E / 32⌉ + 1, ⌈T / 8⌉)
extern "C" __global__ void __launch_bounds__(128)
router_logits_many(const float* h, const bf16* w, const bf16* bias, const unsigned* rows, unsigned pairs, float* logits,
                  f16* arranged) {
    logits_of<128, 4, 8, 128, 3>(h, w, bias, rows, pairs != 0, logits, arranged);
}

// ---------------------------------------------------------------- choice

// Unsigned integers in the order of the floats; -0 is 0, and NaN comes last, behind -∞.
__device__ inline unsigned in_order(float x) {
    if (!(x == x)) return 0;
    const unsigned bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// What `in_order` was made of, but for the sign of 0.
__device__ inline float from_order(unsigned key) { return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key); }

// One warp, one row: the K largest logits, of equal ones the lower expert; softmax over the K. Every lane has the experts.
__device__ void choose_row(const float* logits, unsigned short* chosen, float* weights, unsigned (&experts)[K]) {
    constexpr int PER_LANE = (E + 31) / 32;
    const unsigned lane = threadIdx.x % 32;
    unsigned key[PER_LANE];
    unsigned open = 0; // bit i: expert 32 i + lane is not taken
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const unsigned e = i * 32 + lane;
        key[i] = e < E ? in_order(logits[e]) : 0;
        open |= (e < E ? 1u : 0u) << i;
    }
    float weight[K];
#pragma unroll
    for (int k = 0; k < K; k++) {
        unsigned best = 0, id = E;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            if (open >> i & 1 && (key[i] > best || id == E)) best = key[i], id = i * 32 + lane;
        }
        const unsigned largest = warp_max(best);
        id = warp_min(best == largest ? id : E);
        if (id % 32 == lane) open &= ~(1u << id / 32);
        if (lane == 0) chosen[k] = (unsigned short)id;
        weight[k] = from_order(largest);
        experts[k] = id;
    }
    float sum = 0.0f;
    const float largest = weight[0];
#pragma unroll
    for (int k = 0; k < K; k++) sum += weight[k] = expf(weight[k] - largest);
    if (lane == 0) {
#pragma unroll
        for (int k = 0; k < K; k++) weights[k] = weight[k] / sum;
    }
}

// ---------------------------------------------------------------- sorting

constexpr int OWN = EXPERT_END - EXPERT_FIRST;
constexpr unsigned SORT_WARPS_MAX = 16;

// The lanes of the warp with the same `own`, those without one (own = OWN) among themselves.
__device__ inline unsigned lanes_alike(unsigned own) {
    unsigned alike = ALL;
#pragma unroll
    for (unsigned bit = 1; bit <= OWN; bit *= 2) {
        const unsigned set = __ballot_sync(ALL, (own & bit) != 0);
        alike &= own & bit ? set : ~set;
    }
    return alike;
}

// One block of at most SORT_WARPS_MAX warps.
__device__ void sort_routes(const unsigned short* chosen, unsigned routes, unsigned item_routes, unsigned* sorted, uint4* items,
                            unsigned* item_count) {
    // First how many routes of an expert a warp has, then where its next one goes; behind them totals.
    __shared__ unsigned at[SORT_WARPS_MAX][OWN];
    __shared__ unsigned first[OWN + 1], first_item[OWN + 1];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const unsigned stretch = (routes + 32 * warps - 1) / (32 * warps) * 32, begin = warp * stretch;
    const unsigned below = (1u << lane) - 1;
    for (unsigned e = lane; e < OWN; e += 32) at[warp][e] = 0;
    __syncwarp();

    for (int pass = 0; pass < 2; pass++) {
        for (unsigned i = begin; i < begin + stretch && i < routes; i += 32) {
            const unsigned expert = i + lane < routes ? chosen[i + lane] : E;
            const unsigned own = expert - EXPERT_FIRST < OWN ? expert - EXPERT_FIRST : OWN;
            const unsigned alike = lanes_alike(own);
            if (pass == 1 && own < OWN) sorted[at[warp][own] + __popc(alike & below)] = i + lane;
            __syncwarp();
            if (own < OWN && (alike & below) == 0) at[warp][own] += __popc(alike);
            __syncwarp();
        }
        if (pass == 1) break;
        __syncthreads();
        // counts → where each expert begins, and its items → where each warp begins
        for (unsigned e = threadIdx.x; e < OWN; e += blockDim.x) {
            unsigned count = 0;
            for (unsigned w = 0; w < warps; w++) count += at[w][e];
            first[e + 1] = count;
            first_item[e + 1] = (count + item_routes - 1) / item_routes;
        }
        if (threadIdx.x == 0) first[0] = first_item[0] = 0;
        __syncthreads();
        if (warp == 0) {
            unsigned before = 0, items_before = 0;
            for (unsigned e = lane; e < (OWN + 31) / 32 * 32; e += 32) {
                unsigned count = e < OWN ? first[e + 1] : 0, parts = e < OWN ? first_item[e + 1] : 0;
#pragma unroll
                for (unsigned step = 1; step < 32; step *= 2) {
                    const unsigned a = __shfl_up_sync(ALL, count, step), b = __shfl_up_sync(ALL, parts, step);
                    if (lane >= step) count += a, parts += b;
                }
                if (e < OWN) first[e + 1] = before + count, first_item[e + 1] = items_before + parts;
                before += __shfl_sync(ALL, count, 31);
                items_before += __shfl_sync(ALL, parts, 31);
            }
        }
        __syncthreads();
        for (unsigned e = threadIdx.x; e < OWN; e += blockDim.x) {
            unsigned next = first[e];
            for (unsigned w = 0; w < warps; w++) {
                const unsigned count = at[w][e];
                at[w][e] = next;
                next += count;
            }
            for (unsigned part = 0; part < first_item[e + 1] - first_item[e]; part++) {
                const unsigned from = first[e] + part * item_routes;
                items[first_item[e] + part] = make_uint4(e, from, min(item_routes, first[e + 1] - from), 0);
            }
        }
        if (threadIdx.x == 0) *item_count = first_item[OWN];
        __syncthreads();
    }
}

// What `sort_routes` makes of one row, by one warp that knows the row's experts.
__device__ void sort_row(const unsigned (&experts)[K], unsigned* sorted, uint4* items, unsigned* item_count) {
    const unsigned lane = threadIdx.x % 32;
    unsigned own = OWN, before = 0;
#pragma unroll
    for (unsigned k = 0; k < K; k++) {
        if (lane == k) own = min(experts[k] - EXPERT_FIRST, (unsigned)OWN);
    }
#pragma unroll
    for (unsigned k = 0; k < K; k++) before += experts[k] - EXPERT_FIRST < own;
    const unsigned count = __popc(__ballot_sync(ALL, own < OWN));
    if (own < OWN) {
        sorted[before] = lane;
        items[before] = make_uint4(own, before, 1, 0);
    }
    if (lane == 0) *item_count = count;
}

// grid ⌈T / 4⌉, blocks of 4 warps
extern "C" __global__ void __launch_bounds__(128)
choose(const float* logits, const unsigned* rows, unsigned short* chosen, float* weights) {
    const unsigned row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    unsigned experts[K];
    if (row < *rows) choose_row(logits + (size_t)row * E, chosen + row * K, weights + row * K, experts);
}

// grid 1, blocks of SORT_WARPS_MAX warps or fewer
extern "C" __global__ void __launch_bounds__(SORT_WARPS_MAX * 32)
sort_by_expert(const unsigned short* chosen, const unsigned* rows, unsigned item_routes, unsigned* sorted, uint4* items,
               unsigned* item_count) {
    sort_routes(chosen, *rows * K, item_routes, sorted, items, item_count);
}

// grid 1, blocks of SORT_WARPS_MAX warps or fewer
extern "C" __global__ void __launch_bounds__(SORT_WARPS_MAX * 32)
choose_and_sort(const float* logits, const unsigned* rows, unsigned item_routes, unsigned short* chosen, float* weights,
                unsigned* sorted, uint4* items, unsigned* item_count) {
    let_next_start();
    const unsigned count = *rows;
    wait_for_previous();
    unsigned experts[K];
    for (unsigned row = threadIdx.x / 32; row < count; row += blockDim.x / 32) {
        choose_row(logits + (size_t)row * E, chosen + row * K, weights + row * K, experts);
    }
    if (count == 1) {
        if (threadIdx.x < 32) sort_row(experts, sorted, items, item_count);
        return;
    }
    __syncthreads();
    sort_routes(chosen, count * K, item_routes, sorted, items, item_count);
}
