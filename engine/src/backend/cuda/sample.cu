// Choosing tokens: per sampled row the best (score, token) of this rank's part of the vocabulary.
//
//   score = logit                                              where the temperature is 0
//         = logit / temperature + gumbel(seed, position, token)  elsewhere
//
// over the tokens of `ranges`; the higher score wins, then the lower
// token; a NaN never wins. Where nothing wins the answer is (-inf, 0xffffffff), as from a rank without
// vocabulary. logits: f32 [rows, V]. Exactly `best_of` of engine/src/sample/best.rs, with one difference: the noise is
// made in f64 and rounded to f32, and a card's `log` may differ from the host's in the last bit of the f64,
// which the rounding to f32 hides all but about once in 2^28 draws. Ranks on unlike machines still agree on the
// token, for they compare the scores that were sent; only its noise may come out one f32 step aside.
//
// Two launches: blocks of PART_TOKENS tokens leave their best in `parts`, then a block a row takes the best of them.
// The order is total, so any order of comparing gives the same winner.
//
// f64 is slow on consumer cards, so noise is first made in f32, whose error is bounded below, and in f64 only
// where that could beat the thread's best: in a few of a thread's tokens, mostly the first. Greedy rows make none.
//
// Predicted, not measured, a row of V 201088: 0.8 MB of logits, 99 blocks, 5 to 8 µs in two launches, greedy or not,
// of which 4 µs are launches; with f64 for every token a T4 (1/32) would take 0.1 ms more.
//
// Versions (device, date, µs, 1, 8, 64 rows): H200, 2026-11-28, one rank: greedy 4.6, 5.5, 30.8; temperature 1 10.4, 25.1, 167.8.
//   1  2026-11-23  as above

#include "intrinsics.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned PART_TOKENS = 2048;
constexpr unsigned NO_TOKEN = 0xffffffffu;
// Of the f32 noise: a few steps of two logarithms, each relative to at most 37; and of the sum, relative to it.
constexpr float NOISE_ERROR = 1e-4f, SUM_ERROR = 1e-6f;

struct Candidate {
    float score;
    unsigned token;
};

// As it is uploaded: five words a row.
struct Row {
    float temperature;
    unsigned seed_low, seed_high;
    unsigned position;
    unsigned logit_row;
};

__device__ __forceinline__ Candidate none() { return {__uint_as_float(0xff800000u), NO_TOKEN}; }

__device__ __forceinline__ bool better(Candidate a, Candidate b) {
    return a.score > b.score || (a.score == b.score && a.token < b.token);
}

__device__ __forceinline__ unsigned long long mix(unsigned long long z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// 53 random bits: u = (bits + 1/2) / 2^53.
__device__ __forceinline__ unsigned long long chance(unsigned long long key, unsigned position, unsigned token) {
    return mix(key + ((static_cast<unsigned long long>(position) << 32) | token)) >> 11;
}

// -ln(-ln u)
__device__ __forceinline__ float gumbel(unsigned long long bits) {
    const double u = (static_cast<double>(bits) + 0.5) / 9007199254740992.0;
    return static_cast<float>(-log(-log(u)));
}

// The same within NOISE_ERROR. Near u = 1 by way of 1 - u, which f32 holds as well as it holds u near 0; there f64
// has no halves left, and bits + 1/2 is the even one of its neighbours.
__device__ __forceinline__ float gumbel_about(unsigned long long bits) {
    const unsigned long long all = 1ull << 53;
    const float step = 1.1102230246251565e-16f;
    if (bits < all / 2) return -logf(-logf((static_cast<float>(bits) + 0.5f) * step));
    return -logf(-log1pf(static_cast<float>(all - (bits + (bits & 1))) * -step));
}

// The best of the block, in thread 0.
__device__ __forceinline__ Candidate best_of_block(Candidate best) {
    __shared__ Candidate of_warp[THREADS / 32];
    const auto fold = [&best](unsigned lanes) {
        for (unsigned step = lanes / 2; step > 0; step /= 2) {
            const Candidate other = {__shfl_xor_sync(0xffffffffu, best.score, step),
                                     __shfl_xor_sync(0xffffffffu, best.token, step)};
            if (better(other, best)) best = other;
        }
    };
    fold(32);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x < 32) {
        best = of_warp[threadIdx.x % (THREADS / 32)];
        fold(THREADS / 32);
    }
    return best;
}

// Grid: (parts of the vocabulary, rows). ranges: [range_count][2], tokens that may be chosen, counted from vocab_start.
extern "C" __global__ void __launch_bounds__(THREADS)
best_of_part(const unsigned* __restrict__ row_count, const Row* __restrict__ rows, const float* __restrict__ logits,
             const unsigned* __restrict__ ranges, unsigned range_count, unsigned vocab_start, unsigned vocab_count,
             Candidate* parts) {
    let_next_start();
    if (blockIdx.y >= *row_count) return;
    const Row row = rows[blockIdx.y];
    const unsigned long long seed = (static_cast<unsigned long long>(row.seed_high) << 32) | row.seed_low;
    const unsigned long long key = mix(seed ^ 0x9E3779B97F4A7C15ull);
    const bool greedy = row.temperature == 0.0f;
    const float* own = logits + static_cast<unsigned long long>(row.logit_row) * vocab_count;
    const unsigned begin = blockIdx.x * PART_TOKENS, end = min(begin + PART_TOKENS, vocab_count);

    Candidate best = none();
    for (unsigned range = 0; range < range_count; ++range) {
        const unsigned first = max(begin, ranges[range * 2]), last = min(end, ranges[range * 2 + 1]);
        for (unsigned i = first + threadIdx.x; i < last; i += THREADS) {
            const float logit = own[i];
            Candidate candidate = {logit, vocab_start + i};
            if (!greedy) {
                const float scaled = __fdiv_rn(logit, row.temperature);
                const unsigned long long bits = chance(key, row.position, candidate.token);
                const float about = scaled + gumbel_about(bits);
                // False for NaN and infinities: those are looked at exactly.
                if (about + (NOISE_ERROR + fabsf(about) * SUM_ERROR) < best.score) continue;
                candidate.score = __fadd_rn(scaled, gumbel(bits));
            }
            if (better(candidate, best)) best = candidate;
        }
    }
    best = best_of_block(best);
    if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = best;
}

// Grid: rows. parts: [rows, part_count] → best: [rows].
extern "C" __global__ void __launch_bounds__(THREADS)
best_of_row(const unsigned* __restrict__ row_count, const Candidate* parts, unsigned part_count,
            Candidate* bests) {
    wait_for_previous();
    if (blockIdx.x >= *row_count) return;
    Candidate best = none();
    for (unsigned i = threadIdx.x; i < part_count; i += THREADS) {
        const Candidate candidate = parts[blockIdx.x * part_count + i];
        if (better(candidate, best)) best = candidate;
    }
    best = best_of_block(best);
    if (threadIdx.x == 0) bests[blockIdx.x] = best;
}
