// Sums over ranks through memory that all of them reach: each rank pushes its values into a slot of its own, raises a
// flag, waits for the flags of the others, and adds up all slots in rank order. Slots and flags lie in memory of the
// machine; or, where all ranks are threads of one process on one card, in that card's memory: then nothing that a sum
// waits for leaves the card, and order within the card is enough.
//
// Nothing in a launch's arguments changes from one sum to the next, so that a CUDA graph may replay them: the number
// of the operation is counted in the card's memory (`state`), a flag holds the number of the operation whose values
// are there, and its lowest bit says which of a slot's two sides. Two sides are enough: a rank pushes operation k + 2
// once it has seen everybody's flag k + 1, which each raised after it was done with reading operation k.
//
// A short vector is one launch of one block. A long one is two launches, push and collect: pushing waits for nobody,
// so that blocks which wait never keep others from running that they wait for.
//
// Not here: a sum by pieces (each rank one piece for all), which would read less from 3 ranks on. Long vectors are
// bound by the bus, and fleets whose prompts matter have NCCL.
//
// Versions tried: none on a card yet.
#include "intrinsics.cuh"

// RANKS; THREADS of a block; CHUNK: values that share a flag; FLAGS: chunks of the longest vector
static_assert(CHUNK % 4 == 0, "chunks are read 16 bytes at once");
static_assert(RANKS <= THREADS, "a thread waits for each rank");

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
    unsigned* flags;            // u32 [RANKS, FLAGS]
    const unsigned* abort_word; // the host's, wherever the flags are
    unsigned* told;             // where the host looks for this rank's progress if flags are in the card; otherwise null

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
    __device__ __forceinline__ bool wait_for_flags(unsigned rank, unsigned chunk, unsigned operation,
                                                   unsigned* ended) const {
        // A look at the host's memory costs several at the card's: so seldom that ranks which come together make none.
        const unsigned between_aborts = in_card() ? 255 : 15;
        if (threadIdx.x < RANKS && threadIdx.x != rank) {
            const unsigned* flag = &flags[threadIdx.x * FLAGS + chunk];
            // A rank may be one operation ahead, never two.
            for (unsigned looks = 1; look(flag) - operation > 1; looks++) {
                if ((looks & between_aborts) == 0 && load_acquire_system(abort_word) != 0) {
                    atomicExch(ended, 1u);
                    break;
                }
            }
        }
        __syncthreads();
        return *ended == 0;
    }

    __device__ __forceinline__ unsigned look(const unsigned* flag) const {
        return in_card() ? load_acquire_card(flag) : load_acquire_system(flag);
    }
};

// A whole sum, of up to CHUNK values by one block.
// y: f32 [n]; values: the slots; flags, abort_word, told: see Meeting; state: u32 [2], operations done and blocks done
extern "C" __global__ void __launch_bounds__(THREADS, 1)
sum_short(float* y, unsigned n, unsigned rank, float* values, unsigned capacity, unsigned* flags,
          const unsigned* abort_word, unsigned* told, unsigned* state) {
    __shared__ unsigned ended;
    if (threadIdx.x == 0) ended = 0;
    const Slots slots = {values, capacity};
    const Meeting meeting = {flags, abort_word, told};
    const unsigned operation = state[0] + 1;
    push_range(y, slots.of(rank, operation), 0, n);
    meeting.raise_flag(rank, 0, operation);
    if (!meeting.wait_for_flags(rank, 0, operation, &ended)) return;
    collect_range(y, slots, rank, operation, 0, n);
    if (threadIdx.x == 0) state[0] = operation;
}

// One block a chunk.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
push(const float* y, unsigned n, unsigned rank, float* values, unsigned capacity, unsigned* flags,
     const unsigned* abort_word, unsigned* told, const unsigned* state) {
    const Slots slots = {values, capacity};
    const Meeting meeting = {flags, abort_word, told};
    const unsigned operation = state[0] + 1;
    const unsigned start = blockIdx.x * CHUNK;
    push_range(y, slots.of(rank, operation), start, min(start + CHUNK, n));
    meeting.raise_flag(rank, blockIdx.x, operation);
}

// Any number of blocks, which share the chunks.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
collect(float* y, unsigned n, unsigned rank, float* values, unsigned capacity, unsigned* flags,
        const unsigned* abort_word, unsigned* told, unsigned* state) {
    __shared__ unsigned ended;
    if (threadIdx.x == 0) ended = 0;
    const Slots slots = {values, capacity};
    const Meeting meeting = {flags, abort_word, told};
    const unsigned operation = state[0] + 1;
    __syncthreads();
    for (unsigned chunk = blockIdx.x; chunk * CHUNK < n; chunk += gridDim.x) {
        if (!meeting.wait_for_flags(rank, chunk, operation, &ended)) return;
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
