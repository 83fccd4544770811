// Attention of decode rows, one row of a sequence each, over the paged cache; and the rotation and the
// storing that come before every attention. Prefill is in attention_tiles.cu.
//
//   rope_store      qkv f32 [T, (NQ + 2 NK) D] → q act [T, NQ, D], keys and values bf16 [blocks, NK, 16, D]
//   attend_split    q, keys, values, sinks → out act [T, NQ D] of rows that one block holds;
//                   of the others partial sums f32 [blocks, NK, G, D] and their (m, l)
//   attend_combine  partial sums, sinks → out act [T, NQ D] of those
//
// D head_dim (a multiple of 16), G query heads of a kv head, NQ and NK the rank's own heads.
//
// q is stored times log2(e) / √D, multiplied in f32 before it is rounded, so that a score is q·k as it
// stands and exp is exp2. Sinks are multiplied by log2(e) where they are read.
//
// Design of attend_split. Bytes decide: 4 D bytes a key and kv head, each read once for G query heads.
// On an H200 (4.8 TB/s, 132 multiprocessors at 1.7 GHz) one multiprocessor gets 21 bytes a clock, so
// 16 keys of D = 64 (4096 bytes) take 191 clocks, in which it can issue 765 instructions. With FMA and G = 8
// they need 512 FMAs, 64 conversions at half rate and the reductions: nothing is left. With mma they need
// 8 mma and 180 others (counted in the code for sm_90). On a 4090 (3.1 bytes a clock) both would do. Hence mma
// everywhere.
// Keys lie along m and queries along n (S' = K Q', O' = V' P'): 16 keys, one block of the cache, fill m, and 8
// queries fill n, where queries along m would be half padding. The order of the sum over D is free, so a
// lane reads its part of a key with 16-byte loads straight into the operand; in O' the order of D along m is
// free too, so that values need a lane's 16 bytes of four keys and one byte permute a register. P goes from the
// layout of a result to that of an operand by two shuffles for 16 keys. No shared memory until the end.
// A warp has 32 keys (8 KiB at D = 64) in flight, a multiprocessor 16 warps.
// Keys of a row: steps of 32 from the block of the first visible key on; window rows read their window's blocks
// only, and no entry of the table before them: those may be gone, and the table's start, which wraps, may lie
// before the first of all blocks. The launch has one block a row and some to spare (`spare`, for full layers two a multiprocessor); each
// block takes `per_part` steps of a row, so few that together they need no more blocks than there are, and
// finds its row and its part from the positions of all rows (`part_of`). So a long row among short ones gets as
// many blocks as it needs, and the launch depends on the number of rows alone. Rows in one part are finished at
// once: all rows of a window of 128, launched without spare blocks and without combine.
//
// Predictions, not measurements (no card was at hand): H200, 20b shape, T = 1: 8192 keys of a full layer, 16.8 MB,
// 5 to 6 µs with combine (3.5 µs of bytes); a window layer 3 µs, all latency; 131072 keys 70 µs (56 of bytes).
// 4090: 8192 keys 19 µs (16.7 of bytes). Limits: latency below 4096 keys, bytes above.
//
// Versions (date, device, shape, time):
//   2026-11-28  1  the above   H200, 20b, one rank: T = 1 with 128, 4096, 32768 keys 5.7, 10.3, 24.7 µs with combine, window 3.5;
//                  8 and 32 rows of 4096 keys 25.0 (0.60 of the read rate) and 83.5 (0.72)
// Tried without a card: ld.global.nc for the keys (ptxas moves half of the loads behind the first products on
// sm_90 and 120, so half as many bytes are in flight); positions read before the count of rows is known (NVVM
// moves them back behind the exit).
// To try: the last block of a row combines (one launch less); the next step's keys loaded before this one's use.

#include "intrinsics.cuh"

constexpr unsigned D = HEAD_DIM;
constexpr unsigned G = GROUP;
constexpr unsigned NQ = Q_HEADS;
constexpr unsigned NK = KV_HEADS;
static_assert(NQ == NK * G && D % 16 == 0 && BLOCK_TOKENS == 16, "the shapes that the kernels are made for");

// Sinks are natural logits, scores are in powers of two.
constexpr float LOG2_E = 1.44269504088896340736f;
// The score of a key that is not visible, and m of no keys.
#define NEVER __uint_as_float(0xff800000u)

// Elements before the keys (or values) of one head in one block of the cache.
__device__ inline unsigned long long cache_offset(unsigned block, unsigned head) {
    return ((unsigned long long)block * NK + head) * (BLOCK_TOKENS * D);
}

// ---- rotation ----

constexpr unsigned ROPE_THREADS = 128;
// A thread turns four neighbouring pairs (j, j + D/2), or copies as many values.
constexpr unsigned FOURS = D / 8;

__device__ inline void store_fours(bf16* to, const float (&low)[4], const float (&high)[4]) {
    *(uint2*)to = uint2{pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3])};
    *(uint2*)(to + D / 2) = uint2{pack_bf16(high[0], high[1]), pack_bf16(high[2], high[3])};
}

// Grid ((NQ + 2 NK) FOURS / 128, T). cos, sin: f32 [T, D/2], the concentration in them.
extern "C" __global__ void __launch_bounds__(ROPE_THREADS)
rope_store(const float* qkv, const float* __restrict__ cosines, const float* __restrict__ sines,
           const unsigned* __restrict__ rows, const unsigned* __restrict__ positions,
           const unsigned* __restrict__ table_start, const unsigned* __restrict__ blocks, float q_scale,
           act* q, bf16* keys, bf16* values) {
    let_next_start();
    wait_for_previous();
    const unsigned row = blockIdx.y;
    const unsigned item = blockIdx.x * ROPE_THREADS + threadIdx.x;
    if (row >= *rows || item >= (NQ + 2 * NK) * FOURS) return;
    const unsigned head = item / FOURS, j = item % FOURS * 4;

    const float* from = qkv + ((unsigned long long)row * (NQ + 2 * NK) + head) * D + j;
    float low[4], high[4];
    for (unsigned i = 0; i < 4; i++) {
        low[i] = from[i];
        high[i] = from[D / 2 + i];
    }
    if (head < NQ + NK) {
        const unsigned long long angle = (unsigned long long)row * (D / 2) + j;
        for (unsigned i = 0; i < 4; i++) {
            const float c = cosines[angle + i], s = sines[angle + i];
            const float x = low[i], y = high[i];
            low[i] = x * c - y * s;
            high[i] = y * c + x * s;
        }
    }
    if (head < NQ) {
        for (unsigned i = 0; i < 4; i++) {
            low[i] *= q_scale;
            high[i] *= q_scale;
        }
        act* to = q + ((unsigned long long)row * NQ + head) * D + j;
        *(uint2*)to = uint2{pack_act(low[0], low[1]), pack_act(low[2], low[3])};
        *(uint2*)(to + D / 2) = uint2{pack_act(high[0], high[1]), pack_act(high[2], high[3])};
        return;
    }
    const unsigned position = positions[row];
    const unsigned block = blocks[table_start[row] + position / BLOCK_TOKENS];
    const bool is_key = head < NQ + NK;
    const unsigned kv_head = head - (is_key ? NQ : NQ + NK);
    const unsigned long long at = cache_offset(block, kv_head) + position % BLOCK_TOKENS * D + j;
    store_fours((is_key ? keys : values) + at, low, high);
}

// ---- decode ----

// SPLIT_WARPS and STEP_BLOCKS, the blocks of the cache that a warp takes at once, come from the launcher.
constexpr unsigned WARPS = SPLIT_WARPS;
constexpr unsigned STEP_KEYS = STEP_BLOCKS * BLOCK_TOKENS;
// Tiles of 8 queries; those past G are padding.
constexpr unsigned QUERY_TILES = (G + 7) / 8;
// mma steps over D, or tiles of 16 of D.
constexpr unsigned DEPTH = D / 16;

// The keys that a row sees, in steps.
struct Steps {
    unsigned lowest;       // the first visible key
    unsigned first_block;  // of the table; steps count from its first key
    unsigned count;
};

// window: visible keys with the row's own; 2^32 - 1 for all.
__device__ inline Steps steps_of(unsigned position, unsigned window) {
    Steps s;
    s.lowest = position >= window ? position - window + 1 : 0;
    s.first_block = s.lowest / BLOCK_TOKENS;
    s.count = (position - s.first_block * BLOCK_TOKENS) / STEP_KEYS + 1;
    return s;
}

// The rows that a launch decodes. `spare`: blocks beyond one a row.
struct Decode {
    const unsigned* rows;  // null: every row of the step
    unsigned count;
    const unsigned* positions;
    unsigned window;
    unsigned spare;

    __device__ unsigned row(unsigned index) const { return rows ? rows[index] : index; }
    // Of the `index`-th row; no steps if there is no such row.
    __device__ unsigned steps(unsigned index) const {
        return index < count ? steps_of(positions[row(index)], window).count : 0;
    }
};

__device__ inline unsigned warp_sum_unsigned(unsigned v) {
#pragma unroll
    for (unsigned other = 16; other > 0; other /= 2) v += __shfl_xor_sync(0xffffffffu, v, other);
    return v;
}

// Steps of a part, at least one for each warp. With Σ ⌈steps / per_part⌉ ≤ Σ steps / per_part + rows there are
// never more parts than blocks. Every warp calculates it for itself, as the following.
__device__ inline unsigned per_part(const Decode& decode) {
    if (decode.spare == 0) return 0xffffffffu;
    unsigned total = 0;
#pragma unroll 1
    for (unsigned i = threadIdx.x % 32; i < decode.count; i += 32) total += decode.steps(i);
    total = decode.count == 1 ? decode.steps(0) : warp_sum_unsigned(total);
    return max(WARPS, (total + decode.spare - 1) / decode.spare);
}

__device__ inline unsigned parts(unsigned steps, unsigned per_part) {
    return steps == 0 ? 0 : (steps - 1) / per_part + 1;
}

// A part of a row's steps.
struct Part {
    unsigned index;  // of the row among those that are decoded; `count` for none
    unsigned part, parts;
};

// What block `block` of the launch has to do: parts lie behind each other, row after row.
__device__ inline Part part_of(const Decode& decode, unsigned per_part, unsigned block) {
    if (decode.spare == 0) return Part{min(block, decode.count), 0, 1};
    unsigned before = 0;
#pragma unroll 1
    for (unsigned first = 0; first < decode.count; first += 32) {
        const unsigned lane = threadIdx.x % 32, own = parts(decode.steps(first + lane), per_part);
        unsigned end = before + own;
#pragma unroll
        for (unsigned back = 1; back < 32; back *= 2) {
            const unsigned earlier = __shfl_up_sync(0xffffffffu, end - before, back);
            end += lane >= back ? earlier : 0;
        }
        const unsigned behind = __ballot_sync(0xffffffffu, block < end);
        if (behind != 0) {
            const unsigned found = __ffs(behind) - 1;
            const unsigned begin = __shfl_sync(0xffffffffu, end - own, found);
            return Part{first + found, block - begin, __shfl_sync(0xffffffffu, own, found)};
        }
        before = __shfl_sync(0xffffffffu, end, 31);
    }
    return Part{decode.count, 0, 0};
}

// What Σ exp(s − m) v has to be multiplied with, where l = Σ exp(s − m): here the sink enters, once.
__device__ inline float normalizer(float m, float l, float sink) {
    const float top = fmaxf(m, sink);
    const float scale = exp2f(m - top);
    return scale / (l * scale + exp2f(sink - top));
}

// N words of a row of the cache or of q, as wide as their number allows.
template <unsigned N> __device__ inline void load_words(unsigned* words, const void* from) {
    if constexpr (N % 4 == 0) {
#pragma unroll
        for (unsigned i = 0; i < N; i += 4) {
            const uint4 four = *((const uint4*)from + i / 4);
            words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
        }
    } else if constexpr (N % 2 == 0) {
#pragma unroll
        for (unsigned i = 0; i < N; i += 2) {
            const uint2 two = *((const uint2*)from + i / 2);
            words[i] = two.x, words[i + 1] = two.y;
        }
    } else {
#pragma unroll
        for (unsigned i = 0; i < N; i++) words[i] = *((const unsigned*)from + i);
    }
}

// A quarter of a key's or query's D values: words 2s and 2s + 1 are the lane's operand of mma step s. Which
// values of D these are does not matter, as long as keys and queries agree. `from`: the row and the quarter.
constexpr unsigned QUARTER_WORDS = DEPTH % 2 == 0 ? 4 : 2;
__device__ inline unsigned quarter_offset(unsigned quarter) { return quarter * QUARTER_WORDS * 2; }
__device__ inline void load_quarter(unsigned (&words)[2 * DEPTH], const void* from) {
#pragma unroll
    for (unsigned i = 0; i < 2 * DEPTH; i += QUARTER_WORDS)
        load_words<QUARTER_WORDS>(words + i, (const unsigned*)from + i * 4);
}

// What a warp has of its queries: m, l and Σ exp(s − m) v. A lane's queries are 2 (lane % 4) and the one after, in
// each tile; its part of D is lane / 4 · D/8 and on.
struct Sums {
    float m[QUERY_TILES][2];
    float l[QUERY_TILES][2];  // of the lane's own keys
    float out[QUERY_TILES][DEPTH][4];
};

// The keys and values of one block of the cache, as the lane's operands.
struct BlockOfKeys {
    unsigned key[2][2 * DEPTH];  // lane / 4 and the one 8 later
    unsigned value[4][DEPTH];    // 2 (lane % 4), + 8, + 1, + 9
};

// `key` and `value`: what the block has for this lane, the first of it. Keys outside lowest..=position may hold
// anything, NaN too: their values are not read, as 0 · NaN is NaN, and their scores are replaced later. A block
// past the row's own may not even be in the table. The pointers are not __restrict__, or the loads would become
// ld.global.nc, which ptxas moves behind the first products.
__device__ inline void load_block(BlockOfKeys& to, const bf16* key, const bf16* value, unsigned first_key,
                                  unsigned lowest, unsigned position, unsigned lane) {
    const bool any = first_key <= position;
#pragma unroll
    for (unsigned i = 0; i < 2; i++) {
#pragma unroll
        for (unsigned w = 0; w < 2 * DEPTH; w++) to.key[i][w] = 0;
        if (any) load_quarter(to.key[i], key + i * 8 * D);
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const unsigned later = i / 2 + i % 2 * 8, position_of = first_key + lane % 4 * 2 + later;
#pragma unroll
        for (unsigned w = 0; w < DEPTH; w++) to.value[i][w] = 0;
        if (position_of >= lowest && position_of <= position) load_words<DEPTH>(to.value[i], value + later * D);
    }
}

// scores[tile]: [16 keys, 8 queries], in powers of two.
__device__ inline void score_block(float (&scores)[QUERY_TILES][4], const BlockOfKeys& block,
                                   const unsigned (&query)[QUERY_TILES][2 * DEPTH]) {
#pragma unroll
    for (unsigned tile = 0; tile < QUERY_TILES; tile++)
        for (unsigned i = 0; i < 4; i++) scores[tile][i] = 0.0f;
#pragma unroll
    for (unsigned s = 0; s < DEPTH; s++) {
        const unsigned a[4] = {bf16x2_to_act(block.key[0][2 * s]), bf16x2_to_act(block.key[1][2 * s]),
                               bf16x2_to_act(block.key[0][2 * s + 1]), bf16x2_to_act(block.key[1][2 * s + 1])};
#pragma unroll
        for (unsigned tile = 0; tile < QUERY_TILES; tile++) {
            const unsigned b[2] = {query[tile][2 * s], query[tile][2 * s + 1]};
            mma_act(scores[tile], a, b);
        }
    }
}

// p: [16 keys, 8 queries] as a result lies → as the operand [keys, queries], where the lane's keys are those
// of its values. A lane shows one of its two queries in each round, so that each is asked for once.
__device__ inline void turn(unsigned (&operand)[2], const float (&p)[4], unsigned lane) {
    const unsigned even = pack_act(p[0], p[2]), odd = pack_act(p[1], p[3]);
    const bool swap = lane / 4 % 2 == 1;
    const unsigned from = (lane % 4 * 2 + swap) * 4 + lane / 8;
    const unsigned first = __shfl_sync(0xffffffffu, swap ? odd : even, from);
    const unsigned second = __shfl_sync(0xffffffffu, swap ? even : odd, from ^ 4);
    operand[0] = swap ? second : first;
    operand[1] = swap ? first : second;
}

// out += V' P' for one block; p are the exponentials.
__device__ inline void add_values(Sums& sums, const BlockOfKeys& block, const float (&p)[QUERY_TILES][4],
                                  unsigned lane) {
    unsigned b[QUERY_TILES][2];
#pragma unroll
    for (unsigned tile = 0; tile < QUERY_TILES; tile++) turn(b[tile], p[tile], lane);
#pragma unroll
    for (unsigned i = 0; i < DEPTH; i++) {
        unsigned a[4];
#pragma unroll
        for (unsigned pair = 0; pair < 2; pair++) {
            const unsigned one = block.value[2 * pair][i], other = block.value[2 * pair + 1][i];
            a[2 * pair] = bf16x2_to_act((one & 0xffffu) | (other << 16));
            a[2 * pair + 1] = bf16x2_to_act((one >> 16) | (other & 0xffff0000u));
        }
#pragma unroll
        for (unsigned tile = 0; tile < QUERY_TILES; tile++) mma_act(sums.out[tile][i], a, b[tile]);
    }
}

// scores → exp2(scores − m), with m, l and out of the sums brought to the new m. Each step has a visible key,
// so m is finite from the first on.
__device__ inline void soften(Sums& sums, float (&scores)[STEP_BLOCKS][QUERY_TILES][4]) {
#pragma unroll
    for (unsigned tile = 0; tile < QUERY_TILES; tile++)
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            float m = sums.m[tile][i];
#pragma unroll
            for (unsigned b = 0; b < STEP_BLOCKS; b++)
                m = fmaxf(m, fmaxf(scores[b][tile][i], scores[b][tile][i + 2]));
#pragma unroll
            for (unsigned other = 4; other < 32; other *= 2) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, other));
            const float decay = exp2f(sums.m[tile][i] - m);
            sums.m[tile][i] = m;
            sums.l[tile][i] *= decay;
#pragma unroll
            for (unsigned b = 0; b < STEP_BLOCKS; b++)
#pragma unroll
                for (unsigned at = i; at < 4; at += 2) {
                    scores[b][tile][at] = exp2f(scores[b][tile][at] - m);
                    sums.l[tile][i] += scores[b][tile][at];
                }
#pragma unroll
            for (unsigned d = 0; d < DEPTH; d++) {
                sums.out[tile][d][i] *= decay;
                sums.out[tile][d][i + 2] *= decay;
            }
        }
}

// Grid (rows + spare, NK), WARPS · 32 threads.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)
attend_split(const act* q, const bf16* keys, const bf16* values, const bf16* __restrict__ sinks,
             const unsigned* __restrict__ decode_rows, const unsigned* __restrict__ decode_row_count,
             const unsigned* __restrict__ positions, const unsigned* __restrict__ table_start,
             const unsigned* __restrict__ blocks, unsigned window, unsigned spare,
             float* partial_out, float* partial_state, act* out) {
    __shared__ float warp_out[WARPS][G * D];
    __shared__ float warp_m[WARPS][G], warp_l[WARPS][G];

    let_next_start();
    const unsigned head = blockIdx.y;
    const Decode decode = {decode_rows, *decode_row_count, positions, window, spare};
    const unsigned per = per_part(decode);
    const Part part = part_of(decode, per, blockIdx.x);
    wait_for_previous();  // what was read so far came with the step
    if (part.index >= decode.count) return;
    const unsigned row = decode.row(part.index), position = positions[row];
    const Steps steps = steps_of(position, window);
    const unsigned start = table_start[row];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;

    // queries: lane / 4 of each tile of 8
    unsigned query[QUERY_TILES][2 * DEPTH];
    const act* q_row = q + ((unsigned long long)row * NQ + head * G + lane / 4) * D + quarter_offset(lane % 4);
#pragma unroll
    for (unsigned tile = 0; tile < QUERY_TILES; tile++) {
#pragma unroll
        for (unsigned w = 0; w < 2 * DEPTH; w++) query[tile][w] = 0;
        if (tile * 8 + lane / 4 < G) load_quarter(query[tile], q_row + tile * 8 * D);
    }

    Sums sums;
#pragma unroll
    for (unsigned tile = 0; tile < QUERY_TILES; tile++) {
        for (unsigned i = 0; i < 2; i++) sums.m[tile][i] = NEVER, sums.l[tile][i] = 0.0f;
#pragma unroll
        for (unsigned d = 0; d < DEPTH; d++)
            for (unsigned i = 0; i < 4; i++) sums.out[tile][d][i] = 0.0f;
    }

    keys += lane / 4 * D + quarter_offset(lane % 4);
    values += lane % 4 * 2 * D + lane / 4 * (D / 8);

    // the part's steps, warp by warp; the table is read one step ahead
    const unsigned begin = part.part * per, end = begin + min(steps.count - begin, per);
    const unsigned last_block = position / BLOCK_TOKENS;
    unsigned ahead[STEP_BLOCKS];
    auto read_table = [&](unsigned step) {
#pragma unroll
        for (unsigned b = 0; b < STEP_BLOCKS; b++) {
            const unsigned at = steps.first_block + step * STEP_BLOCKS + b;
            ahead[b] = step < end && at <= last_block ? blocks[start + at] : 0;
        }
    };
    unsigned step = begin + warp;
    read_table(step);
    for (; step < end; step += WARPS) {
        const unsigned first_key = steps.first_block * BLOCK_TOKENS + step * STEP_KEYS;
        BlockOfKeys loaded[STEP_BLOCKS];
#pragma unroll
        for (unsigned b = 0; b < STEP_BLOCKS; b++) {
            const unsigned long long at = cache_offset(ahead[b], head);
            load_block(loaded[b], keys + at, values + at, first_key + b * BLOCK_TOKENS, steps.lowest, position, lane);
        }
        read_table(step + WARPS);
        __syncwarp();  // keeps the loads before the products

        float scores[STEP_BLOCKS][QUERY_TILES][4];
#pragma unroll
        for (unsigned b = 0; b < STEP_BLOCKS; b++) {
            score_block(scores[b], loaded[b], query);
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const unsigned key = first_key + b * BLOCK_TOKENS + lane / 4 + i / 2 * 8;
                const bool visible = key >= steps.lowest && key <= position;
#pragma unroll
                for (unsigned tile = 0; tile < QUERY_TILES; tile++)
                    scores[b][tile][i] = visible ? scores[b][tile][i] : NEVER;
            }
        }
        soften(sums, scores);
#pragma unroll
        for (unsigned b = 0; b < STEP_BLOCKS; b++) add_values(sums, loaded[b], scores[b], lane);
    }

    // each warp's sums into shared memory
#pragma unroll
    for (unsigned tile = 0; tile < QUERY_TILES; tile++)
#pragma unroll
        for (unsigned i = 0; i < 2; i++) {
            float l = sums.l[tile][i];
#pragma unroll
            for (unsigned other = 4; other < 32; other *= 2) l += __shfl_xor_sync(0xffffffffu, l, other);
            const unsigned g = tile * 8 + lane % 4 * 2 + i;
            if (g >= G) continue;
            if (lane / 4 == 0) warp_m[warp][g] = sums.m[tile][i], warp_l[warp][g] = l;
            float* to = warp_out[warp] + g * D + lane / 4 * (D / 8);
#pragma unroll
            for (unsigned d = 0; d < DEPTH; d++) {
                to[2 * d] = sums.out[tile][d][i];
                to[2 * d + 1] = sums.out[tile][d][i + 2];
            }
        }
    __syncthreads();

    // the block's sums, warp after warp; a warp without a step has m = −∞ and no part
    for (unsigned i = threadIdx.x; i < G * D; i += WARPS * 32) {
        const unsigned g = i / D;
        float m = NEVER;
        for (unsigned w = 0; w < WARPS; w++) m = fmaxf(m, warp_m[w][g]);
        float l = 0.0f, sum = 0.0f;
        for (unsigned w = 0; w < WARPS; w++) {
            const float weight = exp2f(warp_m[w][g] - m);
            l += weight * warp_l[w][g];
            sum += weight * warp_out[w][i];
        }
        if (part.parts == 1) {
            const float sink = to_float(sinks[head * G + g]) * LOG2_E;
            out[(unsigned long long)row * (NQ * D) + head * G * D + i] = to_act(sum * normalizer(m, l, sink));
            continue;
        }
        const unsigned long long at = (unsigned long long)blockIdx.x * NK + head;
        partial_out[at * (G * D) + i] = sum;
        if (i % D == 0) {
            partial_state[(at * G + g) * 2] = m;
            partial_state[(at * G + g) * 2 + 1] = l;
        }
    }
}

constexpr unsigned COMBINE_THREADS = 128;
// D/4 threads add up the parts of a row; so many parts are added up beside each other.
constexpr unsigned LANES = D / 4;
constexpr unsigned BESIDE = COMBINE_THREADS / LANES;

// Grid (NQ, rows). `window` and `spare` are those of attend_split's launch.
extern "C" __global__ void __launch_bounds__(COMBINE_THREADS, 8)
attend_combine(const float* partial_out, const float* partial_state,
               const bf16* __restrict__ sinks, const unsigned* __restrict__ decode_rows,
               const unsigned* __restrict__ decode_row_count, const unsigned* __restrict__ positions,
               unsigned window, unsigned spare, act* out) {
    __shared__ float sums[BESIDE][D];
    let_next_start();
    const unsigned q_head = blockIdx.x, index = blockIdx.y;
    const Decode decode = {decode_rows, *decode_row_count, positions, window, spare};
    if (index >= decode.count) return wait_for_previous();
    const unsigned row = decode.row(index), per = per_part(decode);
    const unsigned used = parts(decode.steps(index), per);
    wait_for_previous();
    if (used == 1) return;
    unsigned before = 0;
#pragma unroll 1
    for (unsigned i = threadIdx.x % 32; i < index; i += 32) before += parts(decode.steps(i), per);
    if (index > 0) before = warp_sum_unsigned(before);

    // from one part of the row to the next
    constexpr unsigned STATES = NQ * 2, VALUES = NQ * D;
    const float* state = partial_state + (unsigned long long)before * STATES + q_head * 2;
    const float* from = partial_out + (unsigned long long)before * VALUES + q_head * D;

    // m and l, by every warp alike
    float m = NEVER, l = 0.0f;
    for (unsigned s = threadIdx.x % 32; s < used; s += 32) m = fmaxf(m, state[s * STATES]);
    m = warp_max(m);
    for (unsigned s = threadIdx.x % 32; s < used; s += 32) l += exp2f(state[s * STATES] - m) * state[s * STATES + 1];
    l = warp_sum(l);

    const unsigned beside = threadIdx.x / LANES, d = threadIdx.x % LANES * 4;
    if (beside < BESIDE) {
        float sum[4] = {};
#pragma unroll 4
        for (unsigned s = beside; s < used; s += BESIDE) {
            const uint4 four = *(const uint4*)(from + s * VALUES + d);
            const float weight = exp2f(state[s * STATES] - m);
            sum[0] += weight * __uint_as_float(four.x);
            sum[1] += weight * __uint_as_float(four.y);
            sum[2] += weight * __uint_as_float(four.z);
            sum[3] += weight * __uint_as_float(four.w);
        }
        for (unsigned i = 0; i < 4; i++) sums[beside][d + i] = sum[i];
    }
    __syncthreads();
    if (threadIdx.x >= D) return;
    float sum = 0.0f;
    for (unsigned b = 0; b < BESIDE; b++) sum += sums[b][threadIdx.x];
    const float logit = to_float(sinks[q_head]) * LOG2_E;
    out[((unsigned long long)row * NQ + q_head) * D + threadIdx.x] = to_act(sum * normalizer(m, l, logit));
}
