// The warpgroup products of Hopper (sm_90a) and what they need beside them. As in intrinsics.cuh, each has a side
// for the emulated card. These products are asynchronous: they are started, committed as a group and waited for,
// and until then nobody touches the sums, the registers of A or the shared memory of B.
//
//   wgmma_fence    before the first product of a group: what registers were written is there
//   wgmma_f16      starts d[64, N] += a[64, 16] · b[16, N] (or = with add false), f32 sums
//   wgmma_commit   ends the group
//   wgmma_wait<n>  until all but the last n groups are done; then wgmma_hold(d) before d is read
//
// The four warps of a warpgroup call each together. Warp w has rows 16 w.. of a and d, in its lanes as mma m16n8k16
// has them: of d, lane 4g + t holds in d[4j..] (g, 8j + 2t), (g, 8j + 2t + 1), and the same two of row g + 8.
//
// B lies in shared memory column by column, 64 values of K a column (128 bytes), the 16-byte piece p of column c at
// piece p ^ c % 8; the whole from a multiple of 1024. A slice is 16 of those 64: it begins 32 · i bytes behind the
// tile. Who writes B by ordinary means (cp.async is one) calls fence_async_proxy before the barrier behind which
// others start products.
#pragma once

#include "intrinsics.cuh"

FLOTILLA_DEVICE void wgmma_fence() {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::wgmma_fence();
#else
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
FLOTILLA_DEVICE void wgmma_commit() {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::wgmma_commit();
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int PENDING> FLOTILLA_DEVICE void wgmma_wait() {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::wgmma_wait(PENDING);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#endif
}
/// The compiler may not move what reads or writes d to the other side of this.
template <int COUNT> FLOTILLA_DEVICE void wgmma_hold(float (&d)[COUNT]) {
#ifndef FLOTILLA_EMULATED
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
#endif
}
/// What this thread has written to shared memory is there for the products of all.
FLOTILLA_DEVICE void fence_async_proxy() {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::fence_async_proxy();
#else
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
/// Where piece `piece` (16 bytes) of a column lies in a tile.
FLOTILLA_DEVICE int wgmma_piece(int column, int piece) { return column * 128 + (piece ^ column % 8) * 16; }

#ifndef FLOTILLA_EMULATED
/// Of a slice: K-major, 128-byte swizzle, 1024 bytes from eight columns to the next eight.
FLOTILLA_DEVICE uint64_t wgmma_descriptor(const void* slice) {
    return uint64_t((shared_address(slice) >> 4) + (1u << 16)) | uint64_t(1u << 30 | 1024u >> 4) << 32;
}
#endif

#define FLOTILLA_D8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])

FLOTILLA_DEVICE void wgmma_f16(float (&d)[16], const unsigned (&a)[4], const void* slice, bool add) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::wgmma_f16(d, a, slice, add);
#else
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
        "{%16,%17,%18,%19}, %20, p, 1, 1, 0;\n}"
        : FLOTILLA_D8(0), FLOTILLA_D8(8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(slice)), "r"((int)add));
#endif
}
FLOTILLA_DEVICE void wgmma_f16(float (&d)[32], const unsigned (&a)[4], const void* slice, bool add) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::wgmma_f16(d, a, slice, add);
#else
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
        "{%32,%33,%34,%35}, %36, p, 1, 1, 0;\n}"
        : FLOTILLA_D8(0), FLOTILLA_D8(8), FLOTILLA_D8(16), FLOTILLA_D8(24)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(slice)), "r"((int)add));
#endif
}
FLOTILLA_DEVICE void wgmma_f16(float (&d)[48], const unsigned (&a)[4], const void* slice, bool add) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::wgmma_f16(d, a, slice, add);
#else
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %53, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47}, "
        "{%48,%49,%50,%51}, %52, p, 1, 1, 0;\n}"
        : FLOTILLA_D8(0), FLOTILLA_D8(8), FLOTILLA_D8(16), FLOTILLA_D8(24), FLOTILLA_D8(32), FLOTILLA_D8(40)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(slice)), "r"((int)add));
#endif
}
FLOTILLA_DEVICE void wgmma_f16(float (&d)[64], const unsigned (&a)[4], const void* slice, bool add) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::wgmma_f16(d, a, slice, add);
#else
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
        "{%64,%65,%66,%67}, %68, p, 1, 1, 0;\n}"
        : FLOTILLA_D8(0), FLOTILLA_D8(8), FLOTILLA_D8(16), FLOTILLA_D8(24), FLOTILLA_D8(32), FLOTILLA_D8(40), FLOTILLA_D8(48), FLOTILLA_D8(56)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wgmma_descriptor(slice)), "r"((int)add));
#endif
}
#undef FLOTILLA_D8
