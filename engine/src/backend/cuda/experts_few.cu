// The experts for few routes each: decode. W is read once, and reading it is all that should take time.
//
// A block has ROW_TILE rows of one item; its warps share the K dimension in turns of a chunk of 4 blocks (128
// values), and add up in shared memory, in the order of the warps. Each warp has its own ring of cp.async
// stages, so the loop has no barrier of the block. An item has up to 8 · N_TILES_MAX columns; the loop is
// compiled for 1, 2 and 4 tiles of 8, and an item takes what it needs.
//
// Why cp.async, and not loads of 16 bytes into registers: these give a lane a whole block of a row, where the
// mma wants a word of it in each lane of a quad. Turning that round is 12 selects and 4 shuffles for 4 words, on
// the pipe that decodes. Through shared memory a word costs one load that conflicts with none (rows lie 80 bytes
// apart) and a quarter of a cp.async, and stages need no registers. Activations are loaded straight into
// operands, 16 bytes a lane and block, from L1 or L2: no stage, no barrier, 64 bytes a column.
//
// A word of 4 bytes in 32 lanes (8 weights a lane) costs with one tile of columns 22.7 instructions, counted in
// sm_90's assembly of the loop: decoding 11 (13 without lop3 as a selection, the first version), weights from shared
// 1, scales 1 shuffle and 2, mma 1, fmaf for scales 2, and 4½ for copies, activations, addresses and the loop.
// 10.6 of them go to the pipe for integer logic, which takes one in two clocks (16 lanes in a quarter of an SM).
// A quarter of an SM has for a word, at the full rate of memory: H200 (4.8 TB/s, 132 × 1.755 GHz) 24.7 clocks,
// RTX 4090 (1.008 TB/s, 128 × 2.52) 164, RTX 3090 (0.936, 82 × 1.70) 76. On the H200 logic alone needs 21.2,
// issue 22.7: at 0.80 of that rate logic is busy to 69 %. On the other two issue is 15 % and 33 % and mma, 32
// clocks a word, 20 % and 42 %: there memory alone counts.
// Predicted, not measured, of the rate of reading: H200 0.75 at batch 1 (one wave of 720 blocks, 5 or 6 an SM:
// 0.91; start and end of a launch of 8 µs: 0.9), 0.85 at 2 to 8, 0.75 at 32; RTX 4090 and 3090 0.90.
// Untried: weights by cp.async.bulk (rows of a tile lie behind each other: one instruction for a tile), blocks
// that stay and take tile after tile, 16 rows a tile at batch 1.
//
// | version | card | date | GB/s, batch 1, 8, 32 |
// |---|---|---|---|

constexpr int WARPS = 4, THREADS = WARPS * 32;
constexpr int M_TILES = 2, ROW_TILE = 16 * M_TILES;
constexpr int CHUNK_BLOCKS = 4, STAGES = 3;
constexpr int ROW_BYTES = CHUNK_BLOCKS * 16 + 16; // 8 rows apart by 80 bytes: 8 × 16 bytes in 32 different banks
constexpr int STAGE_BYTES = ROW_TILE * ROW_BYTES;
constexpr int RING_BYTES = WARPS * STAGES * STAGE_BYTES;
constexpr int SUM_STRIDE = ROW_TILE + 4;
constexpr int BLOCKS_OF_SM = N_TILES_MAX == 1 ? 6 : 4; // that there are registers for
static_assert(WARPS * 8 * N_TILES_MAX * SUM_STRIDE * 4 <= RING_BYTES, "the sums of the warps take the place of the ring");

template <class Shape> struct Few {
    static constexpr int BLOCKS = Shape::COLUMNS / 32;
    static constexpr int CHUNK = BLOCKS < CHUNK_BLOCKS ? BLOCKS : CHUNK_BLOCKS;
    static constexpr int CHUNKS = (BLOCKS + CHUNK - 1) / CHUNK;
    static constexpr int SCALE_BYTES = ROW_TILE * BLOCKS; // behind the ring
    static_assert(Shape::ROWS % ROW_TILE == 0 && SCALE_BYTES % 16 == 0, "rows come in whole tiles");

    // The last chunk ends with the row: what it has in common with the one before gets the scale 0 there.
    __device__ static int first_block(int chunk) { return min(chunk * CHUNK, BLOCKS - CHUNK); }
};

// This lane's part of a chunk: block t of rows g, g + 8, …
template <class Shape> __device__ inline void load_chunk(char* stage, const uint8_t* rows, int chunk) {
    using Tile = Few<Shape>;
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    char* to = stage + g * ROW_BYTES + t * 16;
    const uint8_t* from = rows + (g * Tile::BLOCKS + Tile::first_block(chunk) + t) * 16;
    if (t >= Tile::CHUNK) return;
#pragma unroll
    for (int i = 0; i < ROW_TILE / 8; i++) copy_async_16(to + 8 * i * ROW_BYTES, from + 8 * i * Tile::BLOCKS * 16);
}

// sum [M_TILES][N_TILES] = this warp's chunks of W x, without 2^14.
template <class Args, int N_TILES>
__device__ void sum_chunks(float (&sum)[M_TILES][N_TILES][4], char* shared, const Args& args, const Weights& weights,
                           const Columns& columns, int row) {
    using Tile = Few<Args>;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
    char* ring = shared + warp * STAGES * STAGE_BYTES;
    uint8_t* scales = (uint8_t*)shared + RING_BYTES;
    const uint8_t* rows = weights.blocks + (size_t)row * Tile::BLOCKS * 16;

    // Weights first: everything else can be looked up while they are on their way.
    for (int at = threadIdx.x * 16; at < Tile::SCALE_BYTES; at += THREADS * 16) {
        copy_async_16(scales + at, weights.scales + (size_t)row * Tile::BLOCKS + at);
    }
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (warp + s * WARPS < Tile::CHUNKS) load_chunk<Args>(ring + s * STAGE_BYTES, rows, warp + s * WARPS);
        copy_async_commit();
    }
    const f16* x[N_TILES];
#pragma unroll
    for (int n = 0; n < N_TILES; n++) x[n] = args.x + args.offset(columns, n * 8 + g) + t * 8;
    copy_async_wait<STAGES - 2>();
    __syncthreads(); // the scales are there

    int slot = 0;
    for (int chunk = warp; chunk < Tile::CHUNKS; chunk += WARPS) {
        const int first_block = Tile::first_block(chunk);
        uint4 b[Tile::CHUNK];
        if (N_TILES == 1) {
#pragma unroll
            for (int i = 0; i < Tile::CHUNK; i++) b[i] = *(const uint4*)(x[0] + (first_block + i) * 32);
        }
        // Of this lane's block of the chunk, rows g, g + 8, …
        float scale[2 * M_TILES];
        const int own = first_block + (Tile::CHUNK < 4 ? min(t, Tile::CHUNK - 1) : t);
#pragma unroll
        for (int i = 0; i < 2 * M_TILES; i++) {
            const float value = mxfp4_scale(scales[(g + 8 * i) * Tile::BLOCKS + own]);
            scale[i] = own >= chunk * Tile::CHUNK ? value : 0.0f;
        }
        copy_async_wait<STAGES - 2>();
        __syncwarp(); // all lanes' copies have come, and all have done with the slot that is filled next
        const char* stage = ring + slot * STAGE_BYTES;
        const int ahead = chunk + (STAGES - 1) * WARPS, ahead_slot = slot == 0 ? STAGES - 1 : slot - 1;
        if (ahead < Tile::CHUNKS) load_chunk<Args>(ring + ahead_slot * STAGE_BYTES, rows, ahead);
        copy_async_commit();
        slot = slot == STAGES - 1 ? 0 : slot + 1;

#pragma unroll(N_TILES == 4 ? 1 : Tile::CHUNK)
        for (int i = 0; i < Tile::CHUNK; i++) {
            unsigned first[M_TILES][4], second[M_TILES][4];
            float scale_g[M_TILES], scale_g_8[M_TILES];
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
                const char* word = stage + (16 * m + g) * ROW_BYTES + i * 16 + t * 4;
                decode(first[m], second[m], *(const unsigned*)word, *(const unsigned*)(word + 8 * ROW_BYTES));
                scale_g[m] = __shfl_sync(ALL, scale[2 * m], i, 4);
                scale_g_8[m] = __shfl_sync(ALL, scale[2 * m + 1], i, 4);
            }
#pragma unroll
            for (int n = 0; n < N_TILES; n++) {
                // A chunk of several tiles would take too many registers: other warps hide the way to L1.
                const uint4 b_n = N_TILES == 1 ? b[i] : *(const uint4*)(x[n] + (first_block + i) * 32);
#pragma unroll
                for (int m = 0; m < M_TILES; m++) add_block(sum[m][n], first[m], second[m], b_n, scale_g[m], scale_g_8[m]);
            }
        }
    }
}

// f32 [WARPS][columns][SUM_STRIDE] in the place of the ring: the sums of all warps.
template <int N_TILES> __device__ const float* gather(char* shared, const float (&sum)[M_TILES][N_TILES][4]) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
    copy_async_wait<0>();
    __syncthreads();
    float* of_warp = (float*)shared + warp * 8 * N_TILES * SUM_STRIDE;
#pragma unroll
    for (int m = 0; m < M_TILES; m++) {
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                of_warp[(8 * n + 2 * t + i % 2) * SUM_STRIDE + 16 * m + i / 2 * 8 + g] = sum[m][n][i];
            }
        }
    }
    __syncthreads();
    return (const float*)shared;
}

template <int N_TILES> __device__ inline float total(const float* sums, unsigned column, int row) {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += sums[(warp * 8 * N_TILES + column) * SUM_STRIDE + row];
    return sum * UNSCALE;
}

template <int N_TILES>
__device__ void finish(const float* sums, const GateUpArgs& args, const Weights& weights, const Columns& columns, int row) {
    for (unsigned i = threadIdx.x; i < ROW_TILE / 2 * columns.count; i += THREADS) {
        const unsigned column = i / (ROW_TILE / 2), pair = i % (ROW_TILE / 2), at = row + 2 * pair;
        const float gate = total<N_TILES>(sums, column, 2 * pair) + weights.bias_of(at);
        const float up = total<N_TILES>(sums, column, 2 * pair + 1) + weights.bias_of(at + 1);
        args.store(columns, column, at / 2, gate, up);
    }
}

template <int N_TILES>
__device__ void finish(const float* sums, const DownArgs& args, const Weights& weights, const Columns& columns, int row) {
    for (unsigned i = threadIdx.x; i < ROW_TILE * columns.count; i += THREADS) {
        const unsigned column = i / ROW_TILE, at = i % ROW_TILE;
        const float y = total<N_TILES>(sums, column, at) + weights.bias_of(row + at);
        args.store(columns.route(column), row + at, y);
    }
}

template <int N_TILES, class Args> __device__ void product(char* shared, const Args& args, const Columns& columns) {
    const Weights weights = args.weights.template of<Args>(columns.expert);
    const int row = blockIdx.x * ROW_TILE;
    float sum[M_TILES][N_TILES][4] = {};
    sum_chunks<Args, N_TILES>(sum, shared, args, weights, columns, row);
    finish<N_TILES>(gather<N_TILES>(shared, sum), args, weights, columns, row);
}

template <class Args>
__device__ void product_few(const Args& args, const unsigned* sorted, const uint4* items, const unsigned* item_count) {
    DYNAMIC_SHARED(char, shared);
    if (blockIdx.y >= *item_count) return;
    const Columns columns(sorted, items[blockIdx.y]);
    if (N_TILES_MAX == 1 || columns.count <= 8) {
        product<1>(shared, args, columns);
    } else if (N_TILES_MAX == 2 || columns.count <= 16) {
        product<N_TILES_MAX < 2 ? 1 : 2>(shared, args, columns);
    } else {
        product<N_TILES_MAX < 4 ? 1 : 4>(shared, args, columns);
    }
}

// grid (2I / ROW_TILE, items at most)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_OF_SM)
gate_up_few(const uint8_t* blocks, const uint8_t* scales, const bf16* bias, const f16* x, const unsigned* sorted, const uint4* items,
            const unsigned* item_count, float limit, f16* a) {
    product_few(GateUpArgs{{}, {blocks, scales, bias}, x, limit, a}, sorted, items, item_count);
}

// grid (H / ROW_TILE, items at most)
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_OF_SM)
down_few(const uint8_t* blocks, const uint8_t* scales, const bf16* bias, const f16* a, const unsigned* sorted, const uint4* items,
         const unsigned* item_count, const float* router, float* slots) {
    product_few(DownArgs{{}, {blocks, scales, bias}, a, router, slots}, sorted, items, item_count);
}
