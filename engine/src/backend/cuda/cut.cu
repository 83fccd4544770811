// What is to be known of rows of which not every token may be drawn (top-k, top-p, min-p), of this rank's part of the
// vocabulary: its likeliest tokens, and what all of its tokens weigh together. logits: f32 [any, V].
//
// likeliest: of each row its `count` likeliest tokens, and maybe some more: in no order, ROOM of them at most; the host puts
// them in order. Exactly the order of engine/src/sample/candidates.rs, in which -0 is 0 and a NaN is not likely. Digit by digit
// of a number that rises as floats do it is found out how large the least of them is, until no more than ROOM are as large: two
// looks for nearly all rows, and one more to take them. Where more than ROOM are equal to the least of them, it says so, and
// the host looks at the row itself.
//
// weigh: of each PART_TOKENS tokens the sum of their weights, whole numbers: exactly `Weigher` of engine/src/sample/weights.rs,
// operation by operation, none fused. So the sum has the same bits as the host's, and any order gives it.
//
// Before, such rows went to the host whole: 0.8 MB a row of V 201088 over the link, and 1 ms of a core for top-p.
// Predicted, not measured, a row of V 201088: likeliest 25 to 50 µs, three looks of one block at 0.8 MB of the second-level
// cache with four loads of each thread on their way, and little more for 64 rows, a block each; weigh 5 µs, on cards with 1/64 of f64 10 to 400 µs for 1 to 64 rows.
//
// Versions (device, date, µs, 1, 8, 64 rows):
//   1  2026-11-29  as above, not measured

#include "intrinsics.cuh"

constexpr unsigned LOOK_THREADS = 1024, WEIGH_THREADS = 256;
constexpr unsigned BINS = 2 * LOOK_THREADS;
constexpr unsigned AHEAD = 4;
constexpr unsigned DIGITS = 3;
constexpr unsigned ROOM = 512;
constexpr unsigned PART_TOKENS = 8192;

struct Looked {
    unsigned logit_row, count;
};

struct Token {
    float logit;
    unsigned id;
};

// What is said of a row: how many of its tokens are numbers, and how many of these are as large as the least that was looked
// for; then they, if ROOM has room.
struct Likely {
    unsigned all, taken;
    Token tokens[ROOM];
};

// Rises with the logit.
__device__ __forceinline__ unsigned rising(float logit) {
    const unsigned bits = __float_as_uint(__fadd_rn(logit, 0.0f));
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Of those before this thread.
__device__ __forceinline__ unsigned sum_before(unsigned own) {
    __shared__ unsigned of_warp[LOOK_THREADS / 32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const auto scan = [lane](unsigned sum) {
        for (unsigned step = 1; step < 32; step *= 2) {
            const unsigned other = __shfl_up_sync(0xffffffffu, sum, step);
            if (lane >= step) sum += other;
        }
        return sum;
    };
    const unsigned sum = scan(own);
    if (lane == 31) of_warp[warp] = sum;
    __syncthreads();
    if (warp == 0) of_warp[lane] = scan(of_warp[lane]);
    __syncthreads();
    const unsigned before = warp == 0 ? 0 : of_warp[warp - 1];
    __syncthreads();
    return before + sum - own;
}

// Every token that may be chosen and whose logit is a number, each by one thread of the block. Several loads of a thread are on
// their way at once.
template <class Meet>
__device__ __forceinline__ void visit(const float* own, const unsigned* ranges, unsigned range_count, Meet meet) {
    for (unsigned range = 0; range < range_count; ++range) {
        const unsigned last = ranges[range * 2 + 1];
        for (unsigned first = ranges[range * 2] + threadIdx.x; first < last; first += AHEAD * LOOK_THREADS) {
            float ahead[AHEAD];
#pragma unroll
            for (unsigned n = 0; n < AHEAD; ++n) {
                const unsigned i = first + n * LOOK_THREADS;
                ahead[n] = i < last ? own[i] : __uint_as_float(0x7fc00000u);
            }
#pragma unroll
            for (unsigned n = 0; n < AHEAD; ++n) {
                if (ahead[n] == ahead[n]) meet(ahead[n], first + n * LOOK_THREADS);
            }
        }
    }
}

// Grid: rows. ranges: [range_count][2], tokens that may be chosen, counted from vocab_start.
extern "C" __global__ void __launch_bounds__(LOOK_THREADS)
likeliest(const Looked* __restrict__ looked, const float* __restrict__ logits, const unsigned* __restrict__ ranges,
          unsigned range_count, unsigned vocab_start, unsigned vocab_count, Likely* found) {
    __shared__ unsigned bins[BINS];
    __shared__ unsigned bin, above, of_bin, all, taken;
    const Looked row = looked[blockIdx.x];
    const float* own = logits + static_cast<unsigned long long>(row.logit_row) * vocab_count;

    // Keys that share their first digits with `least` are looked at; `left` of them are wanted.
    unsigned least = 0, left = row.count, same = 0;
    if (threadIdx.x == 0) taken = 0;
    for (unsigned digit = 0; digit < DIGITS; ++digit) {
        const unsigned shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
        bins[threadIdx.x] = bins[threadIdx.x + LOOK_THREADS] = 0;
        if (threadIdx.x == 0) bin = BINS;
        __syncthreads();
        visit(own, ranges, range_count, [&](float logit, unsigned) {
            const unsigned key = rising(logit);
            if (((key ^ least) & same) == 0) atomicAdd(&bins[(key >> shift) % BINS], 1u);
        });
        __syncthreads();
        // Two bins each, from the highest down.
        const unsigned high = BINS - 1 - 2 * threadIdx.x;
        const unsigned of_high = bins[high], of_low = bins[high - 1];
        const unsigned before = sum_before(of_high + of_low);
        if (before < left && left <= before + of_high) {
            bin = high, above = before, of_bin = of_high;
        } else if (before + of_high < left && left <= before + of_high + of_low) {
            bin = high - 1, above = before + of_high, of_bin = of_low;
        }
        if (digit == 0 && threadIdx.x == LOOK_THREADS - 1) all = before + of_high + of_low;
        __syncthreads();
        // There are no more than are wanted.
        if (bin == BINS) break;
        least = least & same | bin << shift;
        left -= above;
        if (row.count - left + of_bin <= ROOM) break;
        same = ~0u << shift;
        __syncthreads();
    }
    Likely& out = found[blockIdx.x];
    visit(own, ranges, range_count, [&](float logit, unsigned i) {
        if (rising(logit) < least) return;
        const unsigned at = atomicAdd(&taken, 1u);
        if (at < ROOM) out.tokens[at] = {logit, vocab_start + i};
    });
    __syncthreads();
    if (threadIdx.x == 0) out.all = all, out.taken = taken;
}

struct Weighed {
    unsigned logit_row;
    // The highest logit of all ranks, a finite one, and the least that has a weight.
    float max, least;
    unsigned octaves_low, octaves_high;
};

// exp((logit - max) / temperature) in parts of 2^50.
__device__ __forceinline__ unsigned long long weight(float logit, float max, double octaves) {
    const double round = 6755399441055744.0;
    const double terms[7] = {0.6931471805599453,      0.24022650922288757,   0.055504108839096254,  0.009618056678524637,
                             0.0013333502386156976, 0.0001546144469856913, 1.5297323762025713e-5};
    const double x = __dmul_rn(__dadd_rn(static_cast<double>(logit), -static_cast<double>(max)), octaves);
    const double rounded = __dadd_rn(x, round);
    const double f = __dadd_rn(x, -__dadd_rn(rounded, -round));
    double series = 0.0;
#pragma unroll
    for (int term = 6; term >= 0; --term) series = __dadd_rn(__dmul_rn(series, f), terms[term]);
    series = __dadd_rn(__dmul_rn(series, f), 1.0);
    const unsigned long long power = static_cast<unsigned long long>(__double_as_longlong(series)) +
                                     (static_cast<unsigned long long>(__double_as_longlong(rounded)) << 52);
    const double parts = __dadd_rn(__longlong_as_double(static_cast<long long>(power)), 4.0);
    return static_cast<unsigned long long>(__double_as_longlong(parts) - __double_as_longlong(4.0));
}

// Grid: (parts of the vocabulary, rows). sums: u64 [rows][parts]
extern "C" __global__ void __launch_bounds__(WEIGH_THREADS)
weigh(const Weighed* __restrict__ rows, const float* __restrict__ logits, const unsigned* __restrict__ ranges,
      unsigned range_count, unsigned vocab_count, unsigned long long* sums) {
    __shared__ unsigned long long of_warp[WEIGH_THREADS / 32];
    const Weighed row = rows[blockIdx.y];
    const double octaves = __longlong_as_double(
        static_cast<long long>(static_cast<unsigned long long>(row.octaves_high) << 32 | row.octaves_low));
    const float* own = logits + static_cast<unsigned long long>(row.logit_row) * vocab_count;
    const unsigned begin = blockIdx.x * PART_TOKENS, end = min(begin + PART_TOKENS, vocab_count);
    unsigned long long sum = 0;
    for (unsigned range = 0; range < range_count; ++range) {
        const unsigned first = max(begin, ranges[range * 2]), last = min(end, ranges[range * 2 + 1]);
        for (unsigned i = first + threadIdx.x; i < last; i += WEIGH_THREADS) {
            const float logit = own[i];
            // False for a NaN.
            if (logit >= row.least) sum += weight(logit, row.max, octaves);
        }
    }
    const auto fold = [&sum](unsigned lanes) {
        for (unsigned step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    };
    fold(32);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = of_warp[threadIdx.x % (WEIGH_THREADS / 32)];
        fold(WEIGH_THREADS / 32);
        if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum;
    }
}
