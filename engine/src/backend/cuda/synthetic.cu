// A slice of a synthetic tensor, made where it lies: the bytes of `weights/synthetic.rs`, to the bit.
//
//   make_codes   8 random bits a byte                      MXFP4 elements
//   make_scales  low + 1, or low where 7 bits say so       MXFP4 exponents
//   make_normal  a value of the palette for 12 of 16 bits  bf16
//
// Lane n of a tensor is its bytes 8n .. 8n + 7, made of mix(key + n). A slice is runs of its tensor's bytes at
// equal distances, which lie behind each other in `out`: byte p of `out` is byte
// start + p / run_bytes · stride + p % run_bytes of the tensor. Nothing need be a multiple of 8, neither where
// runs begin nor how long they are nor where `out` lies.
//
// Macro: PALETTE, how many values it has.
//
// Design: a thread makes 8 aligned bytes of `out` at a time, of one lane where the two agree, of two lanes where
// they are shifted against each other, of more where a run ends in between; neighbouring threads write
// neighbouring words. A block looks up its run with one division of 64 bits, its threads go on from there with
// divisions of 32 bits, and with none inside of that run. The palette lies in shared memory.
//
// Predicted, not measured (H200): the 65 GB of gpt-oss-120b in 25 ms. 60 GB of them are codes, about 45
// instructions for 8 bytes: 12 ms, hidden under writes at 4 TB/s, 15 ms. Values of the palette are found at 3 to
// 4 a bank conflict: 1 ms for 2.3 GB. The rest is 687 launches that are waited for, 10 µs each. Of a copy from the
// host at 50 GB/s: a fiftieth.
//
// | version | card | date | time |
// |---|---|---|---|

#include "intrinsics.cuh"

typedef unsigned long long u64;

constexpr unsigned THREADS = 256;
constexpr unsigned BLOCK_WORDS = THREADS * 32; // a block's part of `out`: as in synthetic.rs
constexpr u64 ONES = 0x0101010101010101ull;

// splitmix64's last step, as in shared/src/sampling.rs.
__device__ __forceinline__ u64 mix(u64 z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

struct Codes {
    __device__ __forceinline__ u64 operator()(u64 bits) const { return bits; }
};

// All 8 bytes at once: 7 bits that reach the threshold carry into the eighth.
struct Scales {
    u64 higher, to_carry;
    __device__ __forceinline__ u64 operator()(u64 bits) const {
        return higher - ((((bits & 0x7f * ONES) + to_carry) >> 7) & ONES);
    }
};

struct Normal {
    const unsigned short* palette;
    __device__ __forceinline__ u64 operator()(u64 bits) const {
        const unsigned lo = unsigned(bits), hi = unsigned(bits >> 32);
        const unsigned a = palette[lo % PALETTE] | unsigned(palette[(lo >> 16) % PALETTE]) << 16;
        const unsigned b = palette[hi % PALETTE] | unsigned(palette[(hi >> 16) % PALETTE]) << 16;
        return a | u64(b) << 32;
    }
};

// 8 bytes of the tensor from byte `at` on.
template <class Make> __device__ __forceinline__ u64 bytes_from(u64 at, u64 key, const Make& make) {
    const unsigned shift = unsigned(at % 8) * 8;
    const u64 n = key + at / 8, low = make(mix(n)) >> shift;
    return shift == 0 ? low : low | make(mix(n + 1)) << (64 - shift);
}

// Grid: `bytes` / (8 BLOCK_WORDS), rounded up.
template <class Make>
__device__ __forceinline__ void fill(uint8_t* out, u64 bytes, u64 start, u64 run_bytes, u64 stride, u64 key,
                                     const Make& make) {
    u64 head = (8 - u64(out) % 8) % 8;  // before the first aligned word
    if (head > bytes) head = bytes;
    const u64 words = (bytes - head) / 8;

    // What is no whole word: a byte a thread, 8 before and 8 behind.
    if (blockIdx.x == 0 && threadIdx.x < 16) {
        const bool before = threadIdx.x < 8;
        const u64 p = before ? threadIdx.x : head + words * 8 + threadIdx.x - 8;
        if (p < (before ? head : bytes)) {
            out[p] = uint8_t(bytes_from(start + p / run_bytes * stride + p % run_bytes, key, make));
        }
    }

    const u64 first = u64(blockIdx.x) * BLOCK_WORDS, from = head + first * 8;
    const u64 run = start + from / run_bytes * stride, within = from % run_bytes;
    const u64 left = run_bytes - within;  // of the run that the block begins in
    const unsigned run_bytes_32 = run_bytes > 0xffffffffu ? 0xffffffffu : unsigned(run_bytes);
    u64* to = reinterpret_cast<u64*>(out + head);
    for (unsigned i = threadIdx.x; i < BLOCK_WORDS && first + i < words; i += THREADS) {
        const unsigned p = i * 8;  // of the block's part
        u64 begin = run, at = within + p;
        if (p >= left) {
            const unsigned past = p - unsigned(left);
            begin += (past / run_bytes_32 + 1) * stride;
            at = past % run_bytes_32;
        }
        u64 room = run_bytes - at;
        u64 value = bytes_from(begin + at, key, make);
        // Where a run ends inside of the word, what follows is of the next runs.
        for (unsigned done = 0; room < 8 - done;) {
            done += unsigned(room);
            begin += stride;
            const u64 below = ~0ull >> (64 - done * 8);
            value = (value & below) | bytes_from(begin, key, make) << (done * 8);
            room = run_bytes;
        }
        to[first + i] = value;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
make_codes(uint8_t* __restrict__ out, u64 bytes, u64 start, u64 run_bytes, u64 stride, u64 key) {
    fill(out, bytes, start, run_bytes, stride, key, Codes{});
}

// threshold of 128 blocks have the higher exponent.
extern "C" __global__ void __launch_bounds__(THREADS)
make_scales(uint8_t* __restrict__ out, u64 bytes, u64 start, u64 run_bytes, u64 stride, u64 key, unsigned low,
            unsigned threshold) {
    fill(out, bytes, start, run_bytes, stride, key, Scales{(low + 1) * ONES, (128 - threshold) * ONES});
}

// palette: bf16 [PALETTE]
extern "C" __global__ void __launch_bounds__(THREADS)
make_normal(uint8_t* __restrict__ out, u64 bytes, u64 start, u64 run_bytes, u64 stride, u64 key,
            const unsigned short* __restrict__ palette) {
    __shared__ unsigned short values[PALETTE];
    for (unsigned i = threadIdx.x; i < PALETTE; i += THREADS) values[i] = palette[i];
    __syncthreads();
    fill(out, bytes, start, run_bytes, stride, key, Normal{values});
}
