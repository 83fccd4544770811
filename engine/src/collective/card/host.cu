// Sums over ranks through memory that all of them reach: each rank pushes its values into a slot of its own, waits for
// those of the others, and adds up all slots in rank order. Slots lie in memory of the machine; or, where all ranks are
// threads of one process on one card, in that card's memory: then nothing that a sum waits for leaves the card, and
// order within the card is enough.
//
// Nothing in a launch's arguments changes from one sum to the next, so that a CUDA graph may replay them: the number
// of the operation is counted in the card's memory (`state`), and its lowest bit says which of a slot's two sides. Two
// sides are enough: a rank pushes operation k + 2 once it has seen everybody's k + 1, which each pushed after it was
// done with reading operation k.
//
// A short vector is one launch of one block, and its slots are pairs: 4 bytes of a value and 4 of the operation's
// number, written and read as one. Whoever sees the number has the value: no fence, no flag, one trip through the
// memory for both, at twice the bytes. (NCCL calls this LL.) A long vector has slots of bare values with a flag for each
// chunk, and two launches, push and collect: pushing waits for nobody, so that blocks which wait never keep others
// from running that they wait for.
//
// Whoever waits looks now and then at a word in the machine's memory that says whether the rank it waits for will give
// anything more, and at the clock. A rank whose waiting was vain says so in its own word, which ends the others' waiting
// for it.
//
// Not here: a sum by pieces (each rank one piece for all), which would read less from 3 ranks on. Long vectors are
// bound by the bus, and fleets whose prompts matter have NCCL.
//
// Versions tried, in a graph, H200, 2026-11-28, all ranks on the one card and so on one bus, µs (2 ranks, 4 ranks):
//   chunks of 4096 with flags for every length, the machine's memory: 5.76 kB 8.7, 12.6; 11.52 kB 11.4, 18.6; 92 kB
//   27.0, 56.6; 737 kB 71, 272; 5.9 MB 499, 1932. The card's memory: 5.76 kB 3.3, 4.0; 92 kB 5.5, 7.0.
//   From 737 kB on that is 50 GB/s, writes (a rank's n once) and then reads (n from each other rank) by all ranks.
//   As it is now (pairs up to 4096 values, chunks of 2048): not measured. Predicted, the machine's memory: 5.76 kB 5, 7;
//   11.52 kB 6, 11 (4 ranks read 138 kB and 276 kB by one bus, which is 3 and 6 µs each time they look); 92 kB 15, 38;
//   longer ones as before. The card's memory: 5.76 kB 2.6, 3.0.
#include "intrinsics.cuh"

// RANKS; THREADS of a block; CHUNK: values that share a flag; FLAGS: chunks of the longest vector;
// SHORT: values of the longest short vector
static_assert(CHUNK % 4 == 0, "chunks are read 16 bytes at once");
static_assert(RANKS <= THREADS, "a thread waits for each rank");

/// As the card counts time. It may tick in steps of a microsecond, or of a millisecond.
__device__ __forceinline__ unsigned long long now_ns() {
#ifdef FLOTILLA_EMULATED
    return (unsigned long long)clock64();
#else
    unsigned long long now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
#endif
}

// Looking at what another rank has yet to give.
struct Waiting {
    const unsigned* gone; // u32 [RANKS], the host's: not 0 if a rank gives nothing more
    unsigned own;         // this rank, whose word says so after a sum that was waited for in vain
    unsigned long long patience_ns;
    unsigned long long since_ns;
    unsigned looks;

    /// Asked after each look that found nothing. If it is vain, what was given before the end is there by now: one
    /// more look is the last. A look at the host's memory may cost several at a card's, so it is made seldom: ranks
    /// that come together make none.
    __device__ __forceinline__ bool is_vain(unsigned rank) {
        if (++looks % 64 != 0) return false;
        const unsigned long long now = now_ns();
        if (since_ns == 0) since_ns = now;
        return load_acquire_system(&gone[rank]) != 0 || load_acquire_system(&gone[own]) != 0 ||
               (long long)(now - since_ns) > (long long)patience_ns;
    }
};
__device__ __forceinline__ Waiting wait_with(const unsigned* gone, unsigned own, unsigned long long patience_ns) {
    return {gone, own, patience_ns, 0, 0};
}

// ---------------------------------------------------------------- short: pairs

constexpr unsigned SHORT_THREADS = 1024;
/// Of 2 pairs, which a thread moves at once.
constexpr unsigned UNITS = 2;
static_assert(SHORT == SHORT_THREADS * UNITS * 2, "one block holds a short vector");
/// Ranks whose values are under way at once; the registers hold no more.
constexpr unsigned AT_ONCE = RANKS < 4 ? RANKS : 4;

struct alignas(16) PairOfPairs {
    unsigned long long first, second;
};

/// A pair is whole, whoever sees it; two of them need not be.
__device__ __forceinline__ void store_pairs(PairOfPairs* to, PairOfPairs pairs) {
#ifdef FLOTILLA_EMULATED
    __atomic_store_n(&to->first, pairs.first, __ATOMIC_RELAXED);
    __atomic_store_n(&to->second, pairs.second, __ATOMIC_RELAXED);
#else
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(pairs.first), "l"(pairs.second) : "memory");
#endif
}
__device__ __forceinline__ PairOfPairs load_pairs(const PairOfPairs* from) {
    PairOfPairs pairs;
#ifdef FLOTILLA_EMULATED
    pairs.first = __atomic_load_n(&from->first, __ATOMIC_RELAXED);
    pairs.second = __atomic_load_n(&from->second, __ATOMIC_RELAXED);
#else
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(pairs.first), "=l"(pairs.second) : "l"(from) : "memory");
#endif
    return pairs;
}

__device__ __forceinline__ unsigned long long pair_of(float value, unsigned operation) {
    return (unsigned long long)operation << 32 | __float_as_uint(value);
}
__device__ __forceinline__ float value_of(unsigned long long pair) { return __uint_as_float((unsigned)pair); }
__device__ __forceinline__ bool are_of(PairOfPairs pairs, unsigned operation) {
    return (unsigned)(pairs.first >> 32) == operation && (unsigned)(pairs.second >> 32) == operation;
}

/// What ranks [first, first + AT_ONCE) but this one have for the thread's units, as far as `missing` asks for it (a bit
/// for each unit and rank). Returns whether all of it came.
__device__ __forceinline__ bool receive(PairOfPairs (&got)[UNITS][AT_ONCE], unsigned missing, const PairOfPairs* pairs,
                                        unsigned first, unsigned operation, Waiting& waiting) {
    for (bool is_last = false;; ) {
        // All reads are under way before the first of them is looked at.
#pragma unroll
        for (unsigned bit = 0; bit < UNITS * AT_ONCE; bit++) {
            const unsigned unit = bit / AT_ONCE, r = bit % AT_ONCE;
            if ((missing >> bit & 1) == 0) continue;
            const unsigned slot = (first + r) * 2 + (operation & 1);
            got[unit][r] = load_pairs(pairs + slot * (SHORT / 2) + unit * blockDim.x + threadIdx.x);
        }
#pragma unroll
        for (unsigned bit = 0; bit < UNITS * AT_ONCE; bit++)
            if ((missing >> bit & 1) != 0 && are_of(got[bit / AT_ONCE][bit % AT_ONCE], operation)) missing &= ~(1u << bit);
        if (missing == 0) return true;
        if (is_last) return false;
        is_last = waiting.is_vain(first + (__ffs((int)missing) - 1) % AT_ONCE);
#ifdef FLOTILLA_EMULATED
        flotilla_emulated::spin("load_pairs");
#endif
    }
}

// A whole sum of up to SHORT values, by one block of no more threads than it takes (but of at least n / 4).
// y: f32 [n]; pairs: (f32, u32) [RANKS, 2, SHORT]; gone: see Waiting; told: where this rank tells the host its progress;
// state: u32 [2], operations done and blocks done
extern "C" __global__ void __launch_bounds__(SHORT_THREADS, 1)
sum_short(float* y, unsigned n, unsigned rank, PairOfPairs* pairs, unsigned* gone, unsigned* told, unsigned* state,
          unsigned long long patience_ns) {
    const unsigned operation = state[0] + 1;
    PairOfPairs* own = pairs + (rank * 2 + (operation & 1)) * (SHORT / 2);
    float mine[UNITS][2], sums[UNITS][2];
#pragma unroll
    for (unsigned unit = 0; unit < UNITS; unit++) {
        const unsigned i = unit * blockDim.x + threadIdx.x;
        mine[unit][0] = 2 * i < n ? y[2 * i] : 0.0f;
        mine[unit][1] = 2 * i + 1 < n ? y[2 * i + 1] : 0.0f;
    }
#pragma unroll
    for (unsigned unit = 0; unit < UNITS; unit++) {
        const unsigned i = unit * blockDim.x + threadIdx.x;
        if (2 * i < n) store_pairs(own + i, {pair_of(mine[unit][0], operation), pair_of(mine[unit][1], operation)});
    }
    // It orders nothing.
    if (threadIdx.x == 0) *(volatile unsigned*)told = operation;
    bool is_whole = true;
    Waiting waiting = wait_with(gone, rank, patience_ns);
#pragma unroll 1
    for (unsigned first = 0; first < RANKS; first += AT_ONCE) {
        PairOfPairs got[UNITS][AT_ONCE];
        unsigned missing = 0;
#pragma unroll
        for (unsigned bit = 0; bit < UNITS * AT_ONCE; bit++) {
            const unsigned r = first + bit % AT_ONCE, i = bit / AT_ONCE * blockDim.x + threadIdx.x;
            if (r < RANKS && r != rank && 2 * i < n) missing |= 1u << bit;
        }
        if (!receive(got, missing, pairs, first, operation, waiting)) is_whole = false;
#pragma unroll
        for (unsigned unit = 0; unit < UNITS; unit++) {
#pragma unroll
            for (unsigned r = first; r < RANKS && r < first + AT_ONCE; r++) {
                const float a = r == rank ? mine[unit][0] : value_of(got[unit][r - first].first);
                const float b = r == rank ? mine[unit][1] : value_of(got[unit][r - first].second);
                sums[unit][0] = r == 0 ? a : __fadd_rn(sums[unit][0], a);
                sums[unit][1] = r == 0 ? b : __fadd_rn(sums[unit][1], b);
            }
        }
    }
#pragma unroll
    for (unsigned unit = 0; unit < UNITS; unit++) {
        const unsigned i = unit * blockDim.x + threadIdx.x;
        if (2 * i < n) y[2 * i] = sums[unit][0];
        if (2 * i + 1 < n) y[2 * i + 1] = sums[unit][1];
    }
    if (!is_whole) store_release_system(&gone[rank], 1);
    // All have read the number by then.
    __syncthreads();
    if (threadIdx.x == 0) state[0] = operation;
}

// ---------------------------------------------------------------- long: chunks

// f32 [RANKS, 2, capacity]; capacity is whole chunks
struct Slots {
    float* values;
    unsigned capacity;
    __device__ __forceinline__ float* of(unsigned rank, unsigned operation) const {
        return values + ((unsigned long long)rank * 2 + (operation & 1)) * capacity;
    }
};

/// y [start, end) into the rank's own slot; start is a multiple of 4.
__device__ __forceinline__ void push_range(const float* y, float* slot, unsigned start, unsigned end) {
    const float4* from = (const float4*)y;
    float4* to = (float4*)slot;
    for (unsigned i = start / 4 + threadIdx.x; i < end / 4; i += THREADS) to[i] = from[i];
    const unsigned tail = end / 4 * 4 + threadIdx.x;
    if (tail >= start && tail < end) slot[tail] = y[tail];
}

__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float4 add(float4 a, float4 b) {
    return make_float4(add(a.x, b.x), add(a.y, b.y), add(a.z, b.z), add(a.w, b.w));
}

/// The sum in rank order of place i of all slots; this rank's part is still in y. Up to 8 reads are under way at
/// once, which is as much as the registers hold.
template <class T>
__device__ __forceinline__ T sum_of(const T* y, const Slots& slots, unsigned rank, unsigned operation, unsigned i) {
    T sum;
#pragma unroll
    for (unsigned first = 0; first < RANKS; first += 8) {
        T parts[8];
#pragma unroll
        for (unsigned r = first; r < RANKS && r < first + 8; r++) {
            // Past the first-level cache, which knows nothing of what others write.
            parts[r - first] = r == rank ? y[i] : __ldcg((const T*)slots.of(r, operation) + i);
        }
#pragma unroll
        for (unsigned r = first; r < RANKS && r < first + 8; r++) sum = r == 0 ? parts[0] : add(sum, parts[r - first]);
    }
    return sum;
}

/// y [start, end) becomes the sum over the ranks; start is a multiple of 4.
__device__ __forceinline__ void collect_range(float* y, const Slots& slots, unsigned rank, unsigned operation, unsigned start,
                                              unsigned end) {
    float4* y4 = (float4*)y;
    for (unsigned i = start / 4 + threadIdx.x; i < end / 4; i += THREADS) y4[i] = sum_of(y4, slots, rank, operation, i);
    const unsigned tail = end / 4 * 4 + threadIdx.x;
    if (tail >= start && tail < end) y[tail] = sum_of(y, slots, rank, operation, tail);
}

/// Flags among kernels of one card: as those of the whole system, but the card's second-level cache is as far as
/// anything has to go.
__device__ __forceinline__ void store_release_card(unsigned* to, unsigned value) {
#ifdef FLOTILLA_EMULATED
    store_release_system(to, value);
#else
    asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
#endif
}
__device__ __forceinline__ unsigned load_acquire_card(const unsigned* from) {
#ifdef FLOTILLA_EMULATED
    return load_acquire_system(from);
#else
    unsigned value;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
#endif
}

// Where the ranks meet.
struct Meeting {
    unsigned* flags; // u32 [RANKS, FLAGS]
    unsigned* told;  // where the host looks for this rank's progress if flags are in the card; otherwise null

    __device__ __forceinline__ bool in_card() const { return told != nullptr; }

    /// All values of the block are pushed before anybody sees the flag.
    __device__ __forceinline__ void raise_flag(unsigned rank, unsigned chunk, unsigned operation) const {
        unsigned* flag = &flags[rank * FLAGS + chunk];
        // Within a card, the barrier and the release are all the order that the block's values need.
        if (!in_card()) __threadfence_system();
        __syncthreads();
        if (threadIdx.x != 0) return;
        if (!in_card()) return store_release_system(flag, operation);
        store_release_card(flag, operation);
        // After the flag, so that no rank waits for it; it orders nothing.
        if (chunk == 0) *(volatile unsigned*)told = operation;
    }

    /// Returns, the same in all threads of the block, whether everybody's flag of the chunk is up; if not, the group
    /// has ended. `ended` is shared by the block, and 0.
    __device__ __forceinline__ bool wait_for_flags(unsigned rank, unsigned chunk, unsigned operation, Waiting& waiting,
                                                   unsigned* ended) const {
        if (threadIdx.x < RANKS && threadIdx.x != rank) {
            const unsigned* flag = &flags[threadIdx.x * FLAGS + chunk];
            // A rank may be one operation ahead, never two.
            for (bool is_last = false; look(flag) - operation > 1;) {
                if (is_last) {
                    atomicExch(ended, 1u);
                    break;
                }
                is_last = waiting.is_vain(threadIdx.x);
            }
        }
        __syncthreads();
        return *ended == 0;
    }

    __device__ __forceinline__ unsigned look(const unsigned* flag) const {
        return in_card() ? load_acquire_card(flag) : load_acquire_system(flag);
    }
};

// One block a chunk.
// y: f32 [n]; values: the slots; flags, told: see Meeting; gone: see Waiting; state: as for `sum_short`
extern "C" __global__ void __launch_bounds__(THREADS, 1)
push(const float* y, unsigned n, unsigned rank, float* values, unsigned capacity, unsigned* flags, unsigned* told,
     const unsigned* state) {
    const Slots slots = {values, capacity};
    const Meeting meeting = {flags, told};
    const unsigned operation = state[0] + 1;
    const unsigned start = blockIdx.x * CHUNK;
    push_range(y, slots.of(rank, operation), start, min(start + CHUNK, n));
    meeting.raise_flag(rank, blockIdx.x, operation);
}

// Any number of blocks, which share the chunks.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
collect(float* y, unsigned n, unsigned rank, float* values, unsigned capacity, unsigned* flags, unsigned* gone,
        unsigned* told, unsigned* state, unsigned long long patience_ns) {
    __shared__ unsigned ended;
    if (threadIdx.x == 0) ended = 0;
    const Slots slots = {values, capacity};
    const Meeting meeting = {flags, told};
    const unsigned operation = state[0] + 1;
    Waiting waiting = wait_with(gone, rank, patience_ns);
    __syncthreads();
    for (unsigned chunk = blockIdx.x; chunk * CHUNK < n; chunk += gridDim.x) {
        if (!meeting.wait_for_flags(rank, chunk, operation, waiting, &ended)) {
            if (threadIdx.x == 0) store_release_system(&gone[rank], 1);
            return;
        }
        collect_range(y, slots, rank, operation, chunk * CHUNK, min((chunk + 1) * CHUNK, n));
        // Nobody sets `ended` for the next chunk while others still read it for this one.
        __syncthreads();
    }
    // The last block ends the operation; the others have read its number.
    if (threadIdx.x == 0 && atomicAdd(&state[1], 1u) == gridDim.x - 1) {
        state[1] = 0;
        __threadfence();
        state[0] = operation;
    }
}
