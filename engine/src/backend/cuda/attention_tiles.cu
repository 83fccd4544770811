// Attention of prefill: tiles of consecutive rows of one sequence, over the paged cache.
//
//   attend_tiles    q act [T, NQ, D], keys, values bf16 [blocks, NK, 16, D] → out act [T, NQ D]
//
// D head_dim (a multiple of 16), G query heads of a kv head, NQ and NK the rank's own heads. q and the sinks as
// attention.cu has them: q comes times log2(e) / √D, a score is q·k in powers of two. The tile's own keys
// and values are in the cache before the launch; so a chunk may start at any position.
//
// Design. A block has 128 / G positions of one kv head: their G query heads are stacked along m, 128 rows, so that
// every tile of mma is full for each G that divides 128. It goes through the keys that its rows see in steps of
// KEYS, the first one at the cache block of the first visible key: tiles outside the window are never
// read. Keys and values of the next step come by cp.async while this one is multiplied (two stages, one barrier
// a step). A row of D values is padded by 16 bytes: 8 rows then lie in different banks for ldmatrix. At D ≤ 64 a warp
// has 32 rows, so that each ldmatrix serves two products: 128 mma, 32 ldmatrix and 64 exp2 a lane in a step of
// 64 keys. Scores stay in registers: the layout of a result is that of the next product's operand. Masks are
// only computed in steps that a row sees in part; a warp leaves out steps that none of its rows sees. Blocks with
// the most keys start first. On sm_75 copies are plain, and keys and values become f16 behind ldmatrix.
//
// Limit: matrix instructions, 4 NQ D flop for each row and visible key.
// Predictions, not measurements (no card was at hand): H200, 20b shape, 4096 rows of a full layer: 137 Gflop, 0.35 ms
// (mma.sync at 60 % of the dense rate, two thirds of that reached); a window layer 30 µs. wgmma would be 1.5 times that.
//
// Versions (date, device, shape, time):
//   2026-11-28  1  the above   H200, 20b, one rank: prompts of 512 and 2048, full 18.6 and 145 µs (0.30 of cuBLASLt's bf16 rate),
//                  window 12.3 and 42.5 µs
// Tried without a card: a step's block ids all read before its first copy (now each copy waits for its own, some
// 150 clocks a step that the other block of the multiprocessor has to fill): spills 4 to 40 bytes on sm_120.
// To try: that on the others; q in shared memory instead of 32 registers; wgmma and the bulk copy engine on sm_90a.

#include "intrinsics.cuh"

constexpr unsigned D = HEAD_DIM;
constexpr unsigned G = GROUP;
constexpr unsigned NQ = Q_HEADS;
constexpr unsigned NK = KV_HEADS;
static_assert(NQ == NK * G && D % 16 == 0 && BLOCK_TOKENS == 16, "the shapes that the kernels are made for");

// TILE_M rows of scores, TILE_M / G positions of G query heads and padding if G does not divide it, and TILE_WARPS
// come from the launcher.
constexpr unsigned WARP_M = TILE_M / TILE_WARPS;
constexpr unsigned ROW_TILES = WARP_M / 16;
constexpr unsigned THREADS = TILE_WARPS * 32;
constexpr unsigned KEYS = D <= 64 ? 64 : 32;
// 16-byte chunks of a key, and of a key in shared memory.
constexpr unsigned CHUNKS = D / 8;
constexpr unsigned STRIDE = CHUNKS + 1;

// Sinks are natural logits, scores are in powers of two.
constexpr float LOG2_E = 1.44269504088896340736f;
// The score of a key that is not visible, and m of no keys.
#define NEVER __uint_as_float(0xff800000u)

// What Σ exp(s − m) v has to be multiplied with, where l = Σ exp(s − m): here the sink enters, once.
__device__ inline float normalizer(float m, float l, float sink) {
    const float top = fmaxf(m, sink);
    const float scale = exp2f(m - top);
    return scale / (l * scale + exp2f(sink - top));
}

// The keys and values of one step.
struct Stage {
    uint4 keys[KEYS * STRIDE];
    uint4 values[KEYS * STRIDE];
};

// The positions that a tile sees, and where they lie.
struct Span {
    unsigned first;   // of step 0, a multiple of BLOCK_TOKENS
    unsigned lowest;  // visible to the first row
    unsigned last;    // visible to the last row
    const unsigned* blocks;
    unsigned table_start;  // entries before that of `lowest` may be gone; it wraps
};

// Positions outside lowest..=last may hold anything, NaN too, and become zeros: 0 · NaN is NaN.
__device__ inline void load_stage(Stage& stage, const bf16* keys, const bf16* values, const Span& span,
                                  unsigned first, unsigned head) {
    for (unsigned i = threadIdx.x; i < KEYS * CHUNKS; i += THREADS) {
        const unsigned key = i / CHUNKS, chunk = i % CHUNKS, position = first + key;
        const bool valid = position >= span.lowest && position <= span.last;
        const unsigned block = valid ? span.blocks[span.table_start + position / BLOCK_TOKENS] : 0;
        const unsigned long long at =
            (((unsigned long long)block * NK + head) * BLOCK_TOKENS + position % BLOCK_TOKENS) * D + chunk * 8;
        copy_async_16(&stage.keys[key * STRIDE + chunk], keys + at, valid);
        copy_async_16(&stage.values[key * STRIDE + chunk], values + at, valid);
    }
}

// What a warp has of its rows: a lane's rows are lane / 4 and the one 8 later, in each tile of 16.
struct Rows {
    unsigned position[ROW_TILES][2];
    unsigned q[ROW_TILES][D / 16][4];
    float m[ROW_TILES][2];
    float l[ROW_TILES][2];  // of the lane's own keys
    float out[ROW_TILES][D / 8][4];
};

__device__ inline void four_to_act(unsigned (&words)[4]) {
#pragma unroll
    for (unsigned i = 0; i < 4; i++) words[i] = bf16x2_to_act(words[i]);
}

// scores: [rows, KEYS] = q · keys
__device__ inline void score(float (&scores)[ROW_TILES][KEYS / 8][4], const Rows& rows, const Stage& stage) {
    const unsigned lane = threadIdx.x % 32, matrix = lane / 8;
#pragma unroll
    for (unsigned pair = 0; pair < KEYS / 16; pair++) {
#pragma unroll
        for (unsigned t = 0; t < ROW_TILES; t++)
#pragma unroll
            for (unsigned i = 0; i < 4; i++) scores[t][2 * pair][i] = scores[t][2 * pair + 1][i] = 0.0f;
#pragma unroll
        for (unsigned s = 0; s < D / 16; s++) {
            unsigned b[4];  // two tiles of 8 keys, each (d, d + 8)
            const unsigned key = pair * 16 + matrix / 2 * 8 + lane % 8;
            ldmatrix_x4(b, &stage.keys[key * STRIDE + 2 * s + matrix % 2]);
            four_to_act(b);
            const unsigned b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
            for (unsigned t = 0; t < ROW_TILES; t++) {
                mma_act(scores[t][2 * pair], rows.q[t][s], b0);
                mma_act(scores[t][2 * pair + 1], rows.q[t][s], b1);
            }
        }
    }
}

// Key k is visible to position p iff p − window < k ≤ p.
__device__ inline void mask(float (&scores)[ROW_TILES][KEYS / 8][4], const Rows& rows, unsigned first,
                            unsigned window) {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (unsigned n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const unsigned key = first + n * 8 + lane % 4 * 2 + i % 2, position = rows.position[t][i / 2];
                if (key > position || position - key >= window) scores[t][n][i] = NEVER;
            }
}

// scores → exp2(scores − m), with m, l and out brought to the new m. A row that has seen no key yet has m = −∞.
__device__ inline void soften(Rows& rows, float (&scores)[ROW_TILES][KEYS / 8][4]) {
#pragma unroll
    for (unsigned t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            float m = rows.m[t][i];
#pragma unroll
            for (unsigned n = 0; n < KEYS / 8; n++) m = fmaxf(m, fmaxf(scores[t][n][2 * i], scores[t][n][2 * i + 1]));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
            const float from = m == NEVER ? 0.0f : m;  // −∞ − −∞ would be NaN
            const float decay = exp2f(rows.m[t][i] - from);
            rows.m[t][i] = m;
            float l = rows.l[t][i] * decay;
#pragma unroll
            for (unsigned n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (unsigned at = 2 * i; at < 2 * i + 2; at++) {
                    scores[t][n][at] = exp2f(scores[t][n][at] - from);
                    l += scores[t][n][at];
                }
            rows.l[t][i] = l;
#pragma unroll
            for (unsigned n = 0; n < D / 8; n++) {
                rows.out[t][n][2 * i] *= decay;
                rows.out[t][n][2 * i + 1] *= decay;
            }
        }
}

// out += p · values
__device__ inline void add_values(Rows& rows, const float (&p)[ROW_TILES][KEYS / 8][4], const Stage& stage) {
    const unsigned lane = threadIdx.x % 32, matrix = lane / 8;
#pragma unroll
    for (unsigned k = 0; k < KEYS / 16; k++) {
        unsigned a[ROW_TILES][4];
#pragma unroll
        for (unsigned t = 0; t < ROW_TILES; t++)
#pragma unroll
            for (unsigned i = 0; i < 4; i++)
                a[t][i] = pack_act(p[t][2 * k + i / 2][i % 2 * 2], p[t][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (unsigned n = 0; n < D / 8; n += 2) {
            unsigned b[4];  // two tiles of 8 of D, each (key, key + 8)
            const unsigned key = k * 16 + matrix % 2 * 8 + lane % 8;
            ldmatrix_x4_trans(b, &stage.values[key * STRIDE + n + matrix / 2]);
            four_to_act(b);
            const unsigned b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
            for (unsigned t = 0; t < ROW_TILES; t++) {
                mma_act(rows.out[t][n], a[t], b0);
                mma_act(rows.out[t][n + 1], a[t], b1);
            }
        }
    }
}

// Words of q or out of a lane's row of the tile: the first of D for its query head.
__device__ inline unsigned long long row_offset(unsigned first_row, unsigned head, unsigned m) {
    return ((unsigned long long)(first_row + m / G) * NQ + head * G + m % G) * D;
}

// Grid (NK, tiles). tiles: u32 [n][4] {first row, rows ≤ TILE_M / G, 0, 0}; the rows of a tile are consecutive
// positions of one sequence. window: visible keys with the row's own; 2^32 - 1 for all.
extern "C" __global__ void __launch_bounds__(THREADS, D <= 64 ? 2 : 1)
attend_tiles(const act* __restrict__ q, const bf16* __restrict__ keys, const bf16* __restrict__ values,
             const bf16* __restrict__ sinks, const unsigned* __restrict__ tiles,
             const unsigned* __restrict__ tile_count, const unsigned* __restrict__ positions,
             const unsigned* __restrict__ table_start, const unsigned* __restrict__ blocks, unsigned window,
             act* __restrict__ out) {
    __shared__ __align__(16) Stage stages[2];

    if (blockIdx.y >= *tile_count) return;
    const unsigned tile = *tile_count - 1 - blockIdx.y, head = blockIdx.x;
    const unsigned first_row = tiles[tile * 4], row_count = tiles[tile * 4 + 1];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned first_position = positions[first_row];

    Span span;
    span.lowest = first_position >= window ? first_position - window + 1 : 0;
    span.first = span.lowest / BLOCK_TOKENS * BLOCK_TOKENS;
    span.last = first_position + row_count - 1;
    span.blocks = blocks;
    span.table_start = table_start[first_row];
    load_stage(stages[0], keys, values, span, span.first, head);
    copy_async_commit();

    // the lane's rows, those past the tile's end zero
    const unsigned m_end = row_count * G;
    Rows rows;
#pragma unroll
    for (unsigned t = 0; t < ROW_TILES; t++) {
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            const unsigned m = warp * WARP_M + t * 16 + i * 8 + lane / 4;
            const unsigned* from = (const unsigned*)(q + row_offset(first_row, head, m)) + lane % 4;
            rows.position[t][i] = first_position + m / G;
            rows.m[t][i] = NEVER;
            rows.l[t][i] = 0.0f;
#pragma unroll
            for (unsigned s = 0; s < D / 16; s++) {
                rows.q[t][s][i] = m < m_end ? from[s * 8] : 0;
                rows.q[t][s][i + 2] = m < m_end ? from[s * 8 + 4] : 0;
            }
        }
#pragma unroll
        for (unsigned n = 0; n < D / 8; n++)
#pragma unroll
            for (unsigned i = 0; i < 4; i++) rows.out[t][n][i] = 0.0f;
    }

    // what the warp's own rows see
    const unsigned m_first = warp * WARP_M, m_last = min(m_first + WARP_M, m_end) - 1;
    const unsigned earliest = first_position + m_first / G, latest = first_position + m_last / G;

    const unsigned steps = (span.last - span.first) / KEYS + 1;
    for (unsigned step = 0; step < steps; step++) {
        const unsigned first = span.first + step * KEYS, last = first + KEYS - 1;
        const Stage& stage = stages[step % 2];
        copy_async_wait<0>();
        __syncthreads();  // the stage is there, and nobody reads the other one any more
        if (step + 1 < steps) load_stage(stages[(step + 1) % 2], keys, values, span, first + KEYS, head);
        copy_async_commit();

        const bool seen = m_first < m_end && first <= latest && (last >= earliest || earliest - last < window);
        if (!seen) continue;
        float scores[ROW_TILES][KEYS / 8][4];
        score(scores, rows, stage);
        if (last > earliest || latest - first >= window) mask(scores, rows, first, window);
        soften(rows, scores);
        add_values(rows, scores, stage);
    }

#pragma unroll
    for (unsigned t = 0; t < ROW_TILES; t++)
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            const unsigned m = warp * WARP_M + t * 16 + i * 8 + lane / 4;
            float l = rows.l[t][i];
            l += __shfl_xor_sync(0xffffffffu, l, 1);
            l += __shfl_xor_sync(0xffffffffu, l, 2);
            if (m >= m_end) continue;
            const float scale = normalizer(rows.m[t][i], l, to_float(sinks[head * G + m % G]) * LOG2_E);
            unsigned* to = (unsigned*)(out + row_offset(first_row, head, m)) + lane % 4;
#pragma unroll
            for (unsigned n = 0; n < D / 8; n++)
                to[n * 4] = pack_act(rows.out[t][n][2 * i] * scale, rows.out[t][n][2 * i + 1] * scale);
        }
}
