// The experts of a rank: what the two shapes of their products share, and the sum over a row's experts.
// experts_few.cu and experts_many.cu are compiled with this text in front of them.
//
//   gate_up  f16 x [T, H], MXFP4 W [E', 2I, H], bf16 b [E', 2I] → f16 a [n, I] = (u + 1) · g · σ(1.702 g)
//   down     f16 a [n, I], MXFP4 W [E', H, I], bf16 b [E', H] or none → f32 slots [T·K, H], times the router's weight
//   combine  slots → f32 y [T, H] = Σ_k of the routes that this rank has, in the order of k
//
// E' are the rank's own experts, n its routes in the order of `sorted`, which together with `items` comes from
// route.cu. Weights lie as in the checkpoint: u8 [rows, K/32, 16], low nibble first, a scale a block; gate j is
// row 2j, up j is row 2j + 1.
//
// Weights are the A operand of mma m16n8k16 (rows of W are its rows, routes its columns), decoded in registers.
// Of a block of 32 a row has 16 bytes, a quad of lanes has the row, so each lane decodes one word: eight values,
// for two mma. Which k stands where in a mma is free, as long as A and B agree: decoding gives pairs (j, j + 4)
// of a word, because these need no nibble to change its half; so activations are stored in that order, 0 4 1 5 2
// 6 3 7 of each eight ("arranged"), and the eight of a lane are one load of 16 bytes. The values come as f16 ·
// 2^-14, so decoding is shifts and masks, no product and no table. The two mma of a block start at zero and
// their sum is multiplied by the block's scale in f32: exact for any scale. 2^14 is multiplied in at the end.
//
// Macros: HIDDEN, INTERMEDIATE (the rank's own), PER_TOKEN, EXPERT_FIRST..EXPERT_END. H and I are multiples of
// 32.

#include "intrinsics.cuh"

constexpr int H = HIDDEN, I = INTERMEDIATE, K = PER_TOKEN;
constexpr unsigned ALL = 0xffffffffu;
constexpr float UNSCALE = 16384.0f; // 2^14: what decoding leaves out

struct GateUp {
    static constexpr int ROWS = 2 * I, COLUMNS = H;
};
struct Down {
    static constexpr int ROWS = H, COLUMNS = I;
};

// One product of all experts, and of one.
struct Weights {
    const uint8_t* blocks;
    const uint8_t* scales;
    const bf16* bias; // or null

    template <class Shape> __device__ Weights of(unsigned expert) const {
        constexpr size_t count = (size_t)Shape::ROWS * (Shape::COLUMNS / 32);
        return {blocks + expert * count * 16, scales + expert * count,
                bias ? bias + (size_t)expert * Shape::ROWS : nullptr};
    }
    __device__ float bias_of(int row) const { return bias ? to_float(bias[row]) : 0.0f; }
};

// A block of eight words a quad: this lane's word of rows g and g + 8 → the A operands of two mma.
__device__ inline void decode(unsigned (&first)[4], unsigned (&second)[4], unsigned row_g, unsigned row_g_8) {
    unsigned lo[4], hi[4];
    mxfp4_decode_8_unordered(lo, row_g);
    mxfp4_decode_8_unordered(hi, row_g_8);
    first[0] = lo[0], first[1] = hi[0], first[2] = lo[1], first[3] = hi[1];
    second[0] = lo[2], second[1] = hi[2], second[2] = lo[3], second[3] = hi[3];
}

// sum += scale · (block · x), for rows g and g + 8 and two columns each.
__device__ inline void add_block(float (&sum)[4], const unsigned (&first)[4], const unsigned (&second)[4], uint4 x, float scale_g,
                                 float scale_g_8) {
    float dot[4] = {};
    mma_f16(dot, first, {x.x, x.y});
    mma_f16(dot, second, {x.z, x.w});
    sum[0] = fmaf(dot[0], scale_g, sum[0]);
    sum[1] = fmaf(dot[1], scale_g, sum[1]);
    sum[2] = fmaf(dot[2], scale_g_8, sum[2]);
    sum[3] = fmaf(dot[3], scale_g_8, sum[3]);
}

// (u + 1) · g · σ(1.702 g), g = min(gate, limit), u = clip(up, -limit, limit)
__device__ inline float swiglu(float gate, float up, float limit) {
    const float g = fminf(gate, limit), u = fmaxf(-limit, fminf(up, limit));
    return (u + 1.0f) * (g / (1.0f + expf(-1.702f * g)));
}

// Element j of a row of `a`, in the arranged order.
__device__ inline int arranged(int j) { return j / 8 * 8 + j % 4 * 2 + j % 8 / 4; }

// Where the columns of an item come from, and where they go: column c is route first + c of `sorted`.
struct Columns {
    const unsigned* sorted;
    unsigned expert, first, count;

    __device__ Columns(const unsigned* sorted, uint4 item) : sorted(sorted), expert(item.x), first(item.y), count(item.z) {}
    // Columns that the item does not have are copies of its last: no branch, and nothing is read that nobody wrote.
    __device__ unsigned position(unsigned column) const { return first + min(column, count - 1); }
    __device__ unsigned route(unsigned column) const { return load_past_l1(sorted + position(column)); }
};

// The tensors of one launch.
struct GateUpArgs : GateUp {
    Weights weights;
    const f16* x;
    float limit;
    f16* a;

    // Where a column begins in x.
    __device__ unsigned offset(const Columns& columns, unsigned column) const { return columns.route(column) / K * H; }
    __device__ void store(const Columns& columns, unsigned column, int j, float gate, float up) const {
        a[(size_t)columns.position(column) * I + arranged(j)] = to_f16(swiglu(gate, up, limit));
    }
};
struct DownArgs : Down {
    Weights weights;
    const f16* x; // a
    const float* router;
    float* slots;

    __device__ unsigned offset(const Columns& columns, unsigned column) const { return columns.position(column) * I; }
    __device__ void store(unsigned route, int row, float y) const { slots[(size_t)route * H + row] = router[route] * y; }
};

// grid (⌈H / 1024⌉, T); y[t] = Σ_k slots[t, k], of the experts that this rank has.
extern "C" __global__ void __launch_bounds__(256)
combine(const float* slots, const unsigned short* chosen, const unsigned* rows, float* y) {
    let_next_start();
    wait_for_previous();
    const int at = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    const unsigned row = blockIdx.y;
    if (row >= *rows || at >= H) return;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int k = 0; k < K; k++) {
        const unsigned route = row * K + k, own = chosen[route] - EXPERT_FIRST;
        if (own >= EXPERT_END - EXPERT_FIRST) continue;
        const float4 slot = *(const float4*)(slots + (size_t)route * H + at);
        sum.x += slot.x, sum.y += slot.y, sum.z += slot.z, sum.w += slot.w;
    }
    *(float4*)(y + (size_t)row * H + at) = sum;
}
