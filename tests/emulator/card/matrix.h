// Tensor-core products and ldmatrix: each lane brings its fragments, the last to come does the tile for all 32.
// Sums are in f32, products exact, k from 0 to 15 one after another; a real core sums in an order (and with a
// width) that nobody documents.
#pragma once
#include "memory.h"

namespace flotilla_emulated {

struct Fragments {
    float* c;          // [4]
    const unsigned* a; // [4]
    const unsigned* b; // [2]
};

/// C[16, 8] += A[16, 16] · B[16, 8], the fragments as PTX lays out mma.m16n8k16.row.col: lane 4g + t holds
/// A: (g, 2t..), (g + 8, 2t..), (g, 2t + 8..), (g + 8, 2t + 8..); B: (2t.., g), (2t + 8.., g); C: (g, 2t..), (g + 8, 2t..).
template <class Convert> inline void multiply_tile(Warp& warp, Convert convert) {
    typedef float Row __attribute__((vector_size(32)));
    float a[16][16];
    Row b[16], c[16];
    for (unsigned lane = 0; lane < WARP_LANES; lane++) {
        const auto& mine = *static_cast<Fragments*>(warp.slots[lane]);
        const unsigned g = lane / 4, t = lane % 4 * 2;
        for (unsigned half = 0; half < 2; half++) {
            const unsigned shift = 16 * half;
            a[g][t + half] = convert(mine.a[0] >> shift & 0xFFFF);
            a[g + 8][t + half] = convert(mine.a[1] >> shift & 0xFFFF);
            a[g][t + 8 + half] = convert(mine.a[2] >> shift & 0xFFFF);
            a[g + 8][t + 8 + half] = convert(mine.a[3] >> shift & 0xFFFF);
            b[t + half][g] = convert(mine.b[0] >> shift & 0xFFFF);
            b[t + 8 + half][g] = convert(mine.b[1] >> shift & 0xFFFF);
            c[g][t + half] = mine.c[half];
            c[g + 8][t + half] = mine.c[2 + half];
        }
    }
    for (unsigned row = 0; row < 16; row++) {
        Row sum = c[row];
        for (unsigned k = 0; k < 16; k++) sum += a[row][k] * b[k]; // the product of two 16-bit floats is exact in f32
        c[row] = sum;
    }
    for (unsigned lane = 0; lane < WARP_LANES; lane++) {
        const auto& mine = *static_cast<Fragments*>(warp.slots[lane]);
        const unsigned g = lane / 4, t = lane % 4 * 2;
        for (unsigned half = 0; half < 2; half++) {
            mine.c[half] = c[g][t + half];
            mine.c[2 + half] = c[g + 8][t + half];
        }
    }
}

inline void check_whole_warp(const char* what, int line) {
    if (self->warp->present != ~0u) fail("%s in line %d: the warp has fewer than 32 lanes", what, line);
}

inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    check_whole_warp("mma_bf16", line);
    Fragments mine = {c, a, b};
    warp_meet(~0u, "mma_bf16", line, &mine,
              [](Warp& warp, unsigned) { multiply_tile(warp, [](unsigned bits) { return float_of_bf16(bits); }); });
}
inline void mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
    check_whole_warp("mma_f16", line);
    Fragments mine = {c, a, b};
    warp_meet(~0u, "mma_f16", line, &mine,
              [](Warp& warp, unsigned) { multiply_tile(warp, [](unsigned bits) { return float_of_f16(bits); }); });
}

struct MatrixLoad {
    const void* row;
    unsigned* result;
};

/// ldmatrix: lane 8i + r gives the address of row r (8 values of 16 bits) of matrix i; each lane gets two neighbours
/// of each matrix: row lane / 4, columns 2 (lane % 4) and the next, of it or of its transpose.
template <unsigned COUNT, bool TRANSPOSED>
inline void load_matrices(unsigned (&result)[COUNT], const void* row, const char* what, int line) {
    check_whole_warp(what, line);
    const unsigned lane = self->lane;
    if (lane < 8 * COUNT) {
        check_address(row, 16, what, line);
        if (!in_shared(row)) fail("%s in line %d: %p is not shared memory of the block", what, line, row);
    }
    MatrixLoad mine = {row, result};
    warp_meet(~0u, what, line, &mine, [](Warp& warp, unsigned) {
        for (unsigned matrix = 0; matrix < COUNT; matrix++) {
            unsigned short values[8][8];
            for (unsigned r = 0; r < 8; r++)
                memcpy(values[r], static_cast<MatrixLoad*>(warp.slots[8 * matrix + r])->row, 16);
            for (unsigned lane = 0; lane < WARP_LANES; lane++) {
                const unsigned r = lane / 4, column = lane % 4 * 2;
                const unsigned low = TRANSPOSED ? values[column][r] : values[r][column];
                const unsigned high = TRANSPOSED ? values[column + 1][r] : values[r][column + 1];
                static_cast<MatrixLoad*>(warp.slots[lane])->result[matrix] = low | high << 16;
            }
        }
    });
}

} // namespace flotilla_emulated
