// The warpgroup products of Hopper. A product that was started is done when it is waited for, all at once, on what
// shared memory holds by then: who does not wait reads sums that lack it, who fills a stage too early spoils it. The
// warps of a warpgroup do not meet here: each has rows of its own.
//
// Noticed: a product without a fence before it, shared memory that cp.async has written and no fence has shown to
// the products, a slice that is not where the swizzle wants it. Not noticed: registers of A that are overwritten
// too early (they are copied at the start), barriers of the four warps.
#pragma once
#include "matrix.h"

namespace flotilla_emulated {

/// Of one lane. `slice`: 16 of 64 values of K, column by column, in shared memory.
struct WarpgroupProduct {
    float* d;
    unsigned a[4];
    const char* slice;
    unsigned columns, group;
    bool add;
};

inline void wgmma_fence() { self->product_fenced = true; }
inline void wgmma_commit() {
    self->product_group++;
    self->product_fenced = false;
}
inline void fence_async_proxy() {
    self->block->unfenced_count -= self->unfenced;
    self->unfenced = false;
}

inline void check_slice(const char* slice, unsigned columns, int line) {
    const auto at = reinterpret_cast<uintptr_t>(slice) % 1024;
    if (at >= 128 || at % 32 != 0) fail("wgmma_f16 in line %d: no slice of a tile begins at %p", line, slice);
    const char* tile = slice - at;
    if (!in_shared(tile) || !in_shared(tile + columns * 128 - 1))
        fail("wgmma_f16 in line %d: %u columns from %p on are not all shared memory of the block", line, columns, tile);
}

template <unsigned COUNT>
inline void wgmma_f16(float (&d)[COUNT], const unsigned (&a)[4], const void* slice, bool add, int line = __builtin_LINE()) {
    Thread* thread = self;
    check_whole_warp("wgmma_f16", line);
    check_slice(static_cast<const char*>(slice), 2 * COUNT, line);
    if (!thread->product_fenced) fail("wgmma_f16 in line %d: no wgmma_fence since the last commit", line);
    if (thread->block->unfenced_count != 0)
        fail("wgmma_f16 in line %d: %u threads have written shared memory without fence_async_proxy", line, thread->block->unfenced_count);
    if (thread->product_count == thread->product_capacity) {
        thread->product_capacity = thread->product_capacity == 0 ? 16 : thread->product_capacity * 2;
        const size_t bytes = thread->product_capacity * sizeof(WarpgroupProduct);
        thread->products = static_cast<WarpgroupProduct*>(realloc(thread->products, bytes));
    }
    thread->products[thread->product_count++] = {d, {a[0], a[1], a[2], a[3]}, static_cast<const char*>(slice), 2 * COUNT, thread->product_group, add};
}

/// Product number `at` of every lane of a warp: sums[16, N] += A[16, 16] · B[16, N].
inline void multiply_rows(Warp& warp, unsigned at) {
    constexpr unsigned COLUMNS_MAX = 256;
    float a[16][16], b[16][COLUMNS_MAX];
    const WarpgroupProduct& first = warp.threads[0].products[at];
    const unsigned columns = first.columns;
    for (unsigned column = 0; column < columns; column++) {
        for (unsigned k = 0; k < 16; k++) {
            auto address = reinterpret_cast<uintptr_t>(first.slice + column * 128 + k * 2);
            address ^= (address >> 7 & 7) << 4;
            b[k][column] = float_of_f16(*reinterpret_cast<const unsigned short*>(address));
        }
    }
    for (unsigned lane = 0; lane < WARP_LANES; lane++) {
        const WarpgroupProduct& mine = warp.threads[lane].products[at];
        const unsigned g = lane / 4, t = lane % 4 * 2;
        for (unsigned half = 0; half < 2; half++) {
            a[g][t + half] = float_of_f16(mine.a[0] >> 16 * half & 0xFFFF);
            a[g + 8][t + half] = float_of_f16(mine.a[1] >> 16 * half & 0xFFFF);
            a[g][t + 8 + half] = float_of_f16(mine.a[2] >> 16 * half & 0xFFFF);
            a[g + 8][t + 8 + half] = float_of_f16(mine.a[3] >> 16 * half & 0xFFFF);
        }
    }
    const auto sum_of = [&](unsigned row, unsigned column) -> float& {
        const unsigned lane = row % 8 * 4 + column % 8 / 2;
        return warp.threads[lane].products[at].d[column / 8 * 4 + row / 8 * 2 + column % 2];
    };
    for (unsigned row = 0; row < 16; row++) {
        float sums[COLUMNS_MAX];
        for (unsigned column = 0; column < columns; column++) sums[column] = first.add ? sum_of(row, column) : 0.0f;
        for (unsigned k = 0; k < 16; k++)
            for (unsigned column = 0; column < columns; column++) sums[column] += a[row][k] * b[k][column];
        for (unsigned column = 0; column < columns; column++) sum_of(row, column) = sums[column];
    }
}

/// Until all but the last `pending` groups are done.
inline void wgmma_wait(unsigned pending, int line = __builtin_LINE()) {
    check_whole_warp("wgmma_wait", line);
    warp_meet(~0u, "wgmma_wait", line, &pending, [](Warp& warp, unsigned) {
        const Thread& first = warp.threads[0];
        const unsigned pending = *static_cast<unsigned*>(warp.slots[0]);
        for (unsigned lane = 1; lane < WARP_LANES; lane++)
            if (warp.threads[lane].product_count != first.product_count) fail("the lanes of a warp have started different numbers of products");
        unsigned done = 0;
        while (done < first.product_count && first.products[done].group + pending < first.product_group) multiply_rows(warp, done++);
        for (unsigned lane = 0; lane < WARP_LANES; lane++) {
            Thread& thread = warp.threads[lane];
            thread.product_count -= done;
            memmove(thread.products, thread.products + done, thread.product_count * sizeof(WarpgroupProduct));
        }
    });
}

} // namespace flotilla_emulated
