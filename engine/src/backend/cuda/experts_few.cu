// The experts for few routes each: decode. W is read once, and reading it is all that should take time.
//
// A block stays, and takes tile after tile: ROW_TILE rows of one item. Its four warps share the K dimension in turns of
// a chunk of 4 blocks (128 values), and add up in shared memory, in the order of the warps. Weights go from global memory
// straight into registers, DEPTH chunks ahead, past the end of a tile into the next one, so that no tile begins or ends with
// an empty memory bus. An item has up to 8 · N_TILES columns; tiles of 8 that it does not have are skipped.
//
// A lane loads 16 bytes, a whole block of 32 weights, of rows g, g + 8, ..; the quad has four blocks that lie behind
// each other. Which k stands where in a mma is free as long as A and B agree, so a lane's part of every mma is of its own
// block: half a word (4 weights) a mma, eight mma a chunk. A mma then mixes four blocks, and their scales cannot wait until
// after it: they are multiplied into the decoded f16. A lane sees all scales of its rows in the tile first, takes the largest
// of the four lanes, `top`, and multiplies by 2^(15 + scale - top): with the 2^-14 of decoding, values up to 12. The rest,
// 2^(top - 128), is multiplied into the sum. Exact for blocks of down to 2^-24 of the largest scale that a row has in
// its warp's part (and in its last block, which lanes without one repeat); blocks below 2^-29 of it count as zero. A sum in f32 would not
// see them beside the largest either, unless that one's values, or its activations, are all zero.
//
// A word of 4 bytes in 32 lanes (8 weights a lane) costs 21 instructions, counted in sm_90's assembly of the loop over tiles: decoding 11,
// scaling 4, mma 1, the rest loads, scales, sums and addresses. The first version, which brought weights through shared memory by cp.async and multiplied scales into f32
// sums, had 25 by the hardware's counters.
//
// Measured on a card, H200 (4.48 TB/s read), µs a launch at the shape of 20b on one rank, gate_up / down, 1, 8, 32 rows:
// | version | date | 1 | 8 | 32 |
// |---|---|---|---|---|
// | cp.async ring, f32 scales, a block a tile | 2026-11-28 | 17.4 / 10.2 | 65.1 / 37.5 | 110.9 / 63.2 |

constexpr int WARPS = 4, THREADS = WARPS * 32;
constexpr int M_TILES = N_TILES_MAX == 4 ? 1 : 2, ROW_TILE = 16 * M_TILES; // the launcher knows it, too
constexpr int LANE_ROWS = 2 * M_TILES; // g, g + 8, ..
constexpr int CHUNK_BLOCKS = 4;
constexpr int SUM_STRIDE = ROW_TILE + 4; // a lane's two columns and the next lane's lie in different banks
constexpr int BLOCKS_OF_SM = N_TILES_MAX == 2 ? 3 : 4;                       // that there are registers for; likewise

template <class Shape> struct Few {
    static constexpr int BLOCKS = Shape::COLUMNS / 32;
    static constexpr int CHUNKS = (BLOCKS + CHUNK_BLOCKS - 1) / CHUNK_BLOCKS;
    static constexpr int TURNS = (CHUNKS + WARPS - 1) / WARPS; // of a warp, in a tile
    static constexpr int DEPTH = TURNS % 2 == 0 ? 2 : TURNS % 3 == 0 ? 3 : 1;
    static constexpr int TILES = Shape::ROWS / ROW_TILE;
    static_assert(Shape::ROWS % ROW_TILE == 0, "rows come in whole tiles");

    // This lane's block of K in a turn. In the last turn there may be none: the last one is loaded again, with the scale 0.
    __device__ static int block(int turn) { return (turn * WARPS + (int)threadIdx.x / 32) * CHUNK_BLOCKS + (int)threadIdx.x % 4; }
    __device__ static bool exists(int turn) { return turn < TURNS - 1 || block(turn) < BLOCKS; }
    __device__ static int there(int turn) { return turn < TURNS - 1 ? block(turn) : min(block(turn), BLOCKS - 1); }
};

// A lane's rows of one tile.
template <class Args> struct TileRows {
    unsigned first; // of all experts' rows

    __device__ TileRows(unsigned expert, unsigned tile) : first(expert * Args::ROWS + tile * ROW_TILE + threadIdx.x % 32 / 4) {}
    __device__ void load(uint4 (&to)[LANE_ROWS], const Args& args, int turn) const {
        const uint8_t* from = args.weights.blocks + (size_t)(first * Few<Args>::BLOCKS + Few<Args>::there(turn)) * 16;
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) to[r] = load_stream_16(from + r * (8 * Few<Args>::BLOCKS * 16));
    }
    __device__ void load_scales(unsigned (&to)[LANE_ROWS], const Args& args, int turn) const {
        const uint8_t* from = args.weights.scales + (first * Few<Args>::BLOCKS + Few<Args>::there(turn));
#pragma unroll
        for (int r = 0; r < LANE_ROWS; r++) to[r] = from[r * (8 * Few<Args>::BLOCKS)];
    }
};

// The largest scale of each of the quad's rows, in this warp's part of K.
template <int TURNS> __device__ inline void find_top(unsigned (&top)[LANE_ROWS], const unsigned (&scales)[TURNS][LANE_ROWS]) {
#pragma unroll
    for (int r = 0; r < LANE_ROWS; r++) {
        top[r] = scales[0][r];
#pragma unroll
        for (int turn = 1; turn < TURNS; turn++) top[r] = max(top[r], scales[turn][r]);
        top[r] = max(top[r], __shfl_xor_sync(ALL, top[r], 1));
        top[r] = max(top[r], __shfl_xor_sync(ALL, top[r], 2));
    }
}

// 2^(15 + scale - top) in both halves; 0 for what is too small, and where there is no block.
__device__ inline unsigned factor_of(unsigned scale, unsigned top, bool there) {
    const int exponent = there ? (int)(scale + 30 - top) : 0;
    return (unsigned)max(exponent, 0) * 0x04000400u;
}

// sum += this lane's part of a chunk: 8 mma, of which each takes half a word of every lane's own block.
__device__ inline void add_chunk(float (&sum)[M_TILES][N_TILES_MAX][4], const uint4 (&w)[LANE_ROWS], const unsigned (&factor)[LANE_ROWS],
                                 const f16* x, const unsigned (&column)[N_TILES_MAX], int at, unsigned count) {
    uint4 b[4];
    if (N_TILES_MAX == 1) {
#pragma unroll
        for (int word = 0; word < 4; word++) b[word] = *(const uint4*)(x + column[0] + at + word * 8);
    }
#pragma unroll
    for (int word = 0; word < 4; word++) {
        unsigned first[M_TILES][4], second[M_TILES][4];
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
            const unsigned words_g[4] = {w[2 * m].x, w[2 * m].y, w[2 * m].z, w[2 * m].w};
            const unsigned words_g_8[4] = {w[2 * m + 1].x, w[2 * m + 1].y, w[2 * m + 1].z, w[2 * m + 1].w};
            decode(first[m], second[m], words_g[word], words_g_8[word]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                first[m][i] = mul_f16x2(first[m][i], factor[2 * m + i % 2]);
                second[m][i] = mul_f16x2(second[m][i], factor[2 * m + i % 2]);
            }
        }
#pragma unroll
        for (int n = 0; n < N_TILES_MAX; n++) {
            if (n > 0 && n * 8 >= count) break;
            const uint4 b_n = N_TILES_MAX == 1 ? b[word] : *(const uint4*)(x + column[n] + at + word * 8);
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                mma_f16(sum[m][n], first[m], {b_n.x, b_n.y});
                mma_f16(sum[m][n], second[m], {b_n.z, b_n.w});
            }
        }
    }
}

// f32 [WARPS][columns][SUM_STRIDE]: the sums of all warps, as they are.
__device__ inline void put(float* sums, const float (&sum)[M_TILES][N_TILES_MAX][4], const unsigned (&top)[LANE_ROWS], unsigned count) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
    float* of_warp = sums + warp * 8 * N_TILES_MAX * SUM_STRIDE;
    float rest[LANE_ROWS];
#pragma unroll
    for (int r = 0; r < LANE_ROWS; r++) rest[r] = mxfp4_scale((uint8_t)top[r]) * 0.5f;
#pragma unroll
    for (int n = 0; n < N_TILES_MAX; n++) {
        if (n > 0 && n * 8 >= count) break;
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                of_warp[(8 * n + 2 * t + i % 2) * SUM_STRIDE + 16 * m + i / 2 * 8 + g] = sum[m][n][i] * rest[2 * m + i / 2];
            }
        }
    }
}

__device__ inline float total(const float* sums, unsigned column, unsigned row) {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += sums[(warp * 8 * N_TILES_MAX + column) * SUM_STRIDE + row];
    return sum;
}

// What becomes of a tile's sums. Made before they are there, so that what it reads has come by then.
struct GateUpEnd {
    static constexpr unsigned PAIRS = ROW_TILE / 2;
    static_assert(THREADS % PAIRS == 0, "a thread keeps its row");
    unsigned pair;
    float gate_bias, up_bias;

    __device__ GateUpEnd(const GateUpArgs& args, const Columns& columns, unsigned tile) : pair(threadIdx.x % PAIRS) {
        const Weights weights = args.weights.of<GateUp>(columns.expert);
        const int at = tile * ROW_TILE + 2 * pair;
        gate_bias = weights.bias_of(at), up_bias = weights.bias_of(at + 1);
    }
    __device__ void finish(const float* sums, const GateUpArgs& args, const Columns& columns, unsigned tile) const {
        for (unsigned column = threadIdx.x / PAIRS; column < columns.count; column += THREADS / PAIRS) {
            const float gate = total(sums, column, 2 * pair) + gate_bias, up = total(sums, column, 2 * pair + 1) + up_bias;
            args.store(columns, column, tile * PAIRS + pair, gate, up);
        }
    }
};
struct DownEnd {
    static_assert(THREADS % ROW_TILE == 0, "a thread keeps its row");
    unsigned at, route;
    float bias, router;

    __device__ DownEnd(const DownArgs& args, const Columns& columns, unsigned tile) : at(threadIdx.x % ROW_TILE) {
        bias = args.weights.of<Down>(columns.expert).bias_of(tile * ROW_TILE + at);
        route = columns.route(threadIdx.x / ROW_TILE);
        router = load_past_l1(args.router + route);
    }
    __device__ void finish(const float* sums, const DownArgs& args, const Columns& columns, unsigned tile) const {
        unsigned column = threadIdx.x / ROW_TILE;
        if (column >= columns.count) return;
        args.slots[(size_t)route * H + tile * ROW_TILE + at] = router * (total(sums, column, at) + bias);
        for (column += THREADS / ROW_TILE; column < columns.count; column += THREADS / ROW_TILE) {
            args.store(columns.route(column), tile * ROW_TILE + at, total(sums, column, at) + bias);
        }
    }
};

// EARLY: routes and items were made before the kernel ahead, which waited for them, so that weights can be asked for before it
// has ended. They are read past L1: only a wait would empty it.
template <class Args, class End, bool EARLY>
__device__ void product_few(const Args& args, const unsigned* sorted, const uint4* items, const unsigned* item_count) {
    using Tile = Few<Args>;
    constexpr int TURNS = Tile::TURNS, DEPTH = Tile::DEPTH;
    __shared__ float sums[2][WARPS * 8 * N_TILES_MAX * SUM_STRIDE];
    const int g = threadIdx.x % 32 / 4;
    if (!EARLY) wait_for_previous();
    let_next_start(); // which may count on everything that this kernel has waited for

    // Tile by tile in turns, so that multiprocessors have alike many.
    const unsigned tiles = load_past_l1(item_count) * Tile::TILES;
    unsigned at = blockIdx.x;
    if (at >= tiles) return EARLY ? wait_for_previous() : void();

    uint4 item = load_past_l1(items + at / Tile::TILES);
    TileRows<Args> rows(item.x, at % Tile::TILES);
    uint4 ring[DEPTH][LANE_ROWS];
    unsigned scales[TURNS][LANE_ROWS];
#pragma unroll
    for (int turn = 0; turn < DEPTH; turn++) rows.load(ring[turn], args, turn);
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) rows.load_scales(scales[turn], args, turn);

    for (unsigned buffer = 0;; buffer ^= 1) {
        const Columns columns(sorted, item);
        // Behind the last tile that one comes once more: loads that nobody looks at.
        const unsigned next = at + gridDim.x < tiles ? at + gridDim.x : at;
        const uint4 next_item = load_past_l1(items + next / Tile::TILES);
        const unsigned tile = at % Tile::TILES;
        const End last(args, columns, tile);
        if (EARLY) wait_for_previous();
        unsigned column[N_TILES_MAX];
#pragma unroll
        for (int n = 0; n < N_TILES_MAX; n++) column[n] = args.offset(columns, n * 8 + g);
        const TileRows<Args> next_rows(next_item.x, next % Tile::TILES);

        unsigned top[LANE_ROWS];
        find_top(top, scales);
        float sum[M_TILES][N_TILES_MAX][4] = {};
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++) {
            unsigned factor[LANE_ROWS];
#pragma unroll
            for (int r = 0; r < LANE_ROWS; r++) factor[r] = factor_of(scales[turn][r], top[r], Tile::exists(turn));
            next_rows.load_scales(scales[turn], args, turn);
            add_chunk(sum, ring[turn % DEPTH], factor, args.x, column, Tile::there(turn) * 32, columns.count);
            if (turn + DEPTH < TURNS) {
                rows.load(ring[turn % DEPTH], args, turn + DEPTH);
            } else {
                next_rows.load(ring[turn % DEPTH], args, turn + DEPTH - TURNS);
            }
        }
        // Two buffers, a barrier a tile: who writes one has passed a barrier behind all that was read of it.
        put(sums[buffer], sum, top, columns.count);
        __syncthreads();
        last.finish(sums[buffer], args, columns, tile);
        if (next == at) break;
        at = next, item = next_item, rows = next_rows;
    }
}

// grid: as many blocks as the card holds at a time, or as there are tiles at most
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_OF_SM)
gate_up_few(const uint8_t* blocks, const uint8_t* scales, const bf16* bias, const f16* x, const unsigned* sorted, const uint4* items,
            const unsigned* item_count, float limit, f16* a) {
    product_few<GateUpArgs, GateUpEnd, false>(GateUpArgs{{}, {blocks, scales, bias}, x, limit, a}, sorted, items, item_count);
}

// grid: likewise. Right behind gate_up of the same routes, which has waited for who made them.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_OF_SM)
down_few(const uint8_t* blocks, const uint8_t* scales, const bf16* bias, const f16* a, const unsigned* sorted, const uint4* items,
         const unsigned* item_count, const float* router, float* slots) {
    product_few<DownArgs, DownEnd, true>(DownArgs{{}, {blocks, scales, bias}, a, router, slots}, sorted, items, item_count);
}
