// The few instructions that CUDA C++ has no portable word for: 16-bit floats, tensor-core products, asynchronous
// copies, MXFP4 decoding, system-wide flags. Each has two sides: PTX for a card, and the emulated card's functions
// (FLOTILLA_EMULATED). Kernels use these and plain CUDA C++; no other header is included, because NVRTC alone has
// none (cuda_bf16.h comes with the toolkit, which a user need not have).
//
// Deliberately not here: anything that knows a shape or a layout of the model.
#pragma once

#ifdef FLOTILLA_EMULATED
#define FLOTILLA_DEVICE inline
#else
#define FLOTILLA_DEVICE __device__ __forceinline__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
#endif

#if __CUDA_ARCH__ < 800
#define ACT_IS_F16 1
#endif

struct bf16 {
    unsigned short bits;
};
struct f16 {
    unsigned short bits;
};

// ---------------------------------------------------------------- 16-bit floats

FLOTILLA_DEVICE float to_float(bf16 v) { return __uint_as_float(unsigned(v.bits) << 16); }
FLOTILLA_DEVICE float lo_bf16(unsigned pair) { return __uint_as_float(pair << 16); }
FLOTILLA_DEVICE float hi_bf16(unsigned pair) { return __uint_as_float(pair & 0xFFFF0000u); }

FLOTILLA_DEVICE float to_float(f16 v) {
#ifdef FLOTILLA_EMULATED
    return flotilla_emulated::float_of_f16(v.bits);
#else
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits));
    return r;
#endif
}
FLOTILLA_DEVICE float lo_f16(unsigned pair) { return to_float(f16{(unsigned short)(pair & 0xFFFFu)}); }
FLOTILLA_DEVICE float hi_f16(unsigned pair) { return to_float(f16{(unsigned short)(pair >> 16)}); }

/// Two values, rounded to nearest even; a NaN becomes 0x7FFF.
FLOTILLA_DEVICE unsigned pack_bf16(float lo, float hi) {
#ifdef FLOTILLA_EMULATED
    return flotilla_emulated::bf16_of_float(lo) | flotilla_emulated::bf16_of_float(hi) << 16;
#elif __CUDA_ARCH__ >= 800
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
#else
    const unsigned l = __float_as_uint(lo), h = __float_as_uint(hi);
    const unsigned rl = lo != lo ? 0x7FFFu : (l + 0x7FFFu + ((l >> 16) & 1u)) >> 16;
    const unsigned rh = hi != hi ? 0x7FFFu : (h + 0x7FFFu + ((h >> 16) & 1u)) >> 16;
    return rl | rh << 16;
#endif
}
/// Round to nearest even.
FLOTILLA_DEVICE bf16 to_bf16(float v) { return bf16{(unsigned short)(pack_bf16(v, 0.0f) & 0xFFFFu)}; }

/// ±65504 for what is larger, infinities too; a NaN stays one.
FLOTILLA_DEVICE float clamp_f16(float v) {
#if !defined(FLOTILLA_EMULATED) && __CUDA_ARCH__ >= 800
    asm("min.NaN.f32 %0, %0, 0f477FE000;" : "+f"(v));
    asm("max.NaN.f32 %0, %0, 0fC77FE000;" : "+f"(v));
    return v;
#else
    v = v > 65504.0f ? 65504.0f : v;
    return v < -65504.0f ? -65504.0f : v;
#endif
}

/// Two values, rounded to nearest even, saturating at ±65504; a NaN becomes 0x7FFF.
FLOTILLA_DEVICE unsigned pack_f16(float lo, float hi) {
#ifdef FLOTILLA_EMULATED
    return flotilla_emulated::f16_of_float_saturating(lo) | flotilla_emulated::f16_of_float_saturating(hi) << 16;
#elif __CUDA_ARCH__ >= 800
    unsigned r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(clamp_f16(hi)), "f"(clamp_f16(lo)));
    return r;
#else
    unsigned short l, h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(l) : "f"(clamp_f16(lo)));
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(clamp_f16(hi)));
    return unsigned(l) | unsigned(h) << 16;
#endif
}
/// Round to nearest even, saturating at ±65504.
FLOTILLA_DEVICE f16 to_f16(float v) {
#ifdef FLOTILLA_EMULATED
    return f16{(unsigned short)flotilla_emulated::f16_of_float_saturating(v)};
#else
    unsigned short r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(clamp_f16(v)));
    return f16{r};
#endif
}

// Activations: bf16 where tensor cores take it, f16 before (sm_75).
#ifdef ACT_IS_F16
typedef f16 act;
FLOTILLA_DEVICE act to_act(float v) { return to_f16(v); }
FLOTILLA_DEVICE unsigned pack_act(float lo, float hi) { return pack_f16(lo, hi); }
FLOTILLA_DEVICE float lo_act(unsigned pair) { return lo_f16(pair); }
FLOTILLA_DEVICE float hi_act(unsigned pair) { return hi_f16(pair); }
/// Two bf16 weights as two activations: converted, saturating.
FLOTILLA_DEVICE unsigned bf16x2_to_act(unsigned pair) { return pack_f16(lo_bf16(pair), hi_bf16(pair)); }
#else
typedef bf16 act;
FLOTILLA_DEVICE act to_act(float v) { return to_bf16(v); }
FLOTILLA_DEVICE unsigned pack_act(float lo, float hi) { return pack_bf16(lo, hi); }
FLOTILLA_DEVICE float lo_act(unsigned pair) { return lo_bf16(pair); }
FLOTILLA_DEVICE float hi_act(unsigned pair) { return hi_bf16(pair); }
/// Two bf16 weights as two activations: as they are.
FLOTILLA_DEVICE unsigned bf16x2_to_act(unsigned pair) { return pair; }
#endif

// ---------------------------------------------------------------- tensor cores

// c[16, 8] += a[16, 16] · b[16, 8] by one warp, f32 sums. Lane 4g + t holds of a: (g, 2t..), (g + 8, 2t..),
// (g, 2t + 8..), (g + 8, 2t + 8..); of b: (2t.., g), (2t + 8.., g); of c: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
// All 32 lanes call it together.

#if __CUDA_ARCH__ >= 800
FLOTILLA_DEVICE void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::mma_bf16(c, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
#endif

FLOTILLA_DEVICE void mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::mma_f16(c, a, b);
#elif __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

FLOTILLA_DEVICE void mma_act(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef ACT_IS_F16
    mma_f16(c, a, b);
#else
    mma_bf16(c, a, b);
#endif
}

// ---------------------------------------------------------------- shared memory

#ifndef FLOTILLA_EMULATED
/// The block's dynamic shared memory, 16-byte aligned. (One symbol: a second one of another type would alias it.)
extern __shared__ __align__(16) unsigned char flotilla_dynamic_shared[];
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(flotilla_dynamic_shared)

FLOTILLA_DEVICE unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
#endif

/// 16 bytes from global to shared memory behind the kernel's back; both addresses multiples of 16. Not `valid`:
/// zeros, and `global` is not read. They have arrived after copy_async_wait, for the other threads after a barrier.
FLOTILLA_DEVICE void copy_async_16(void* shared, const void* global, bool valid = true) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::copy_async_16(shared, global, valid);
#elif __CUDA_ARCH__ >= 800
    const unsigned bytes = valid ? 16u : 0u;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
#else
    uint4 v = make_uint4(0, 0, 0, 0);
    if (valid) v = *(const uint4*)global;
    *(uint4*)shared = v;
#endif
}
FLOTILLA_DEVICE void copy_async_commit() {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::copy_async_commit();
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Waits until at most the last PENDING committed groups of this thread are still under way.
template <int PENDING> FLOTILLA_DEVICE void copy_async_wait() {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::copy_async_wait(PENDING);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Lane 8i + r gives the address of row r (16 bytes, a multiple of 16) of 8 × 8 matrix i; each lane gets (lane / 4,
// 2 (lane % 4)) and its right neighbour of each matrix, or of its transpose. All 32 lanes call it together; the
// addresses of lanes past the matrices are not looked at.
FLOTILLA_DEVICE void ldmatrix_x4(unsigned (&r)[4], const void* shared_row) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::load_matrices<4, false>(r, shared_row, "ldmatrix_x4", __LINE__);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
#endif
}
FLOTILLA_DEVICE void ldmatrix_x4_trans(unsigned (&r)[4], const void* shared_row) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::load_matrices<4, true>(r, shared_row, "ldmatrix_x4_trans", __LINE__);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
#endif
}
FLOTILLA_DEVICE void ldmatrix_x2(unsigned (&r)[2], const void* shared_row) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::load_matrices<2, false>(r, shared_row, "ldmatrix_x2", __LINE__);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared_row))
                 : "memory");
#endif
}
FLOTILLA_DEVICE void ldmatrix_x2_trans(unsigned (&r)[2], const void* shared_row) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::load_matrices<2, true>(r, shared_row, "ldmatrix_x2_trans", __LINE__);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(shared_row))
                 : "memory");
#endif
}

// ---------------------------------------------------------------- MXFP4

// A nibble is s ee m (E2M1). Its sign moved to bit 15 and e, e, m to bits 11..9 make the f16 of the value · 2^-14,
// exactly, subnormals included: no multiply, no table. Fold 2^14 in where the block's scale is applied.

/// The 8 nibbles of a word as high bytes of f16: `even` holds nibbles 0, 2, 4, 6 in its bytes 0..3, `odd` 1, 3, 5, 7.
FLOTILLA_DEVICE void mxfp4_high_bytes(unsigned& even, unsigned& odd, unsigned word) {
    even = ((word << 4) & 0x80808080u) | ((word << 1) & 0x0E0E0E0Eu);
    odd = (word & 0x80808080u) | ((word >> 3) & 0x0E0E0E0Eu);
}

/// Pair j holds nibbles 2j (low) and 2j + 1 (high) as f16, each · 2^-14.
FLOTILLA_DEVICE void mxfp4_decode_8(unsigned (&f16x2)[4], unsigned word) {
    unsigned even, odd;
    mxfp4_high_bytes(even, odd, word);
    f16x2[0] = __byte_perm(even, odd, 0x4000) & 0xFF00FF00u; // bytes from high to low: odd 0, any, even 0, any
    f16x2[1] = __byte_perm(even, odd, 0x5010) & 0xFF00FF00u;
    f16x2[2] = __byte_perm(even, odd, 0x6020) & 0xFF00FF00u;
    f16x2[3] = __byte_perm(even, odd, 0x7030) & 0xFF00FF00u;
}

/// Bits of `a` where `mask` is set, of `b` elsewhere. One instruction; written out, the compiler splits the mask.
FLOTILLA_DEVICE unsigned select_bits(unsigned a, unsigned b, unsigned mask) {
#ifdef FLOTILLA_EMULATED
    return (a & mask) | (b & ~mask);
#else
    unsigned selected;
    asm("lop3.b32 %0, %1, %2, %3, 0xE4;" : "=r"(selected) : "r"(a), "r"(b), "r"(mask));
    return selected;
#endif
}

/// Pair j holds nibbles j (low) and j + 4 (high) as f16, each · 2^-14: sign to bit 7 of a byte, the other three
/// bits to bits 3 to 1, and what is left of the neighbouring nibble masked away with the low byte.
FLOTILLA_DEVICE void mxfp4_decode_8_unordered(unsigned (&f16x2)[4], unsigned word) {
    const unsigned even = select_bits(word << 4, word << 1, 0x80808080u);
    const unsigned odd = select_bits(word, word >> 3, 0x80808080u);
    f16x2[0] = (even << 8) & 0x8E008E00u;
    f16x2[1] = (odd << 8) & 0x8E008E00u;
    f16x2[2] = even & 0x8E008E00u;
    f16x2[3] = odd & 0x8E008E00u;
}

/// Two products, each rounded to nearest even.
FLOTILLA_DEVICE unsigned mul_f16x2(unsigned a, unsigned b) {
#ifdef FLOTILLA_EMULATED
    return pack_f16(lo_f16(a) * lo_f16(b), hi_f16(a) * hi_f16(b));
#else
    unsigned product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
#endif
}

/// 2^(s − 127), exactly: s = 0 is the subnormal 2^−127, s = 255 is NaN.
FLOTILLA_DEVICE float mxfp4_scale(uint8_t s) {
    const unsigned bits = s == 0 ? 0x00400000u : unsigned(s) << 23;
    return __uint_as_float(s == 255 ? 0x7FC00000u : bits);
}

// ---------------------------------------------------------------- global memory

/// 16 bytes that are read once: past L1, so that what is read often stays there. Not by ld.global.nc: ptxas moves those
/// behind a wait for the kernel ahead.
FLOTILLA_DEVICE uint4 load_stream_16(const void* global) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::check_address(global, 16, "load_stream_16", __LINE__);
    return *(const uint4*)global;
#else
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(global));
    return v;
#endif
}

/// A value past L1, which may still have what an earlier kernel left there.
template <class T> FLOTILLA_DEVICE T load_past_l1(const T* from) {
#ifdef FLOTILLA_EMULATED
    return *from;
#else
    return __ldcg(from);
#endif
}

// ---------------------------------------------------------------- kernels that begin early

// See launch.rs. Both mean nothing where a kernel is not started early, and before sm_90.

/// The next kernel in the stream may begin, once every block has said so or has ended.
FLOTILLA_DEVICE void let_next_start() {
#if !defined(FLOTILLA_EMULATED) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Waits until the kernel ahead has ended and all that it wrote is seen. It has waited for the one ahead of it.
FLOTILLA_DEVICE void wait_for_previous() {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::wait_for_previous();
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Flags in memory that several cards and the host see. The one who writes data and then the flag, and the one who
// reads the flag and then the data, need no other fence.
FLOTILLA_DEVICE void store_release_system(unsigned* to, unsigned value) {
#ifdef FLOTILLA_EMULATED
    flotilla_emulated::store_release_system(to, value);
#else
    asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
#endif
}
FLOTILLA_DEVICE unsigned load_acquire_system(const unsigned* from) {
#ifdef FLOTILLA_EMULATED
    return flotilla_emulated::load_acquire_system(from);
#else
    unsigned value;
    asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
#endif
}

// ---------------------------------------------------------------- warps

/// The sum over the 32 lanes, the same bits in each: xor shuffles over 16, 8, 4, 2, 1.
FLOTILLA_DEVICE float warp_sum(float v) {
#ifdef FLOTILLA_EMULATED
    return flotilla_emulated::butterfly_sum(v);
#else
#pragma unroll
    for (int lanes = 16; lanes != 0; lanes >>= 1) v = __fadd_rn(v, __shfl_xor_sync(0xFFFFFFFFu, v, lanes));
    return v;
#endif
}
/// The largest of the 32 lanes; NaNs are passed over.
FLOTILLA_DEVICE float warp_max(float v) {
#ifdef FLOTILLA_EMULATED
    return flotilla_emulated::butterfly_max(v);
#else
#pragma unroll
    for (int lanes = 16; lanes != 0; lanes >>= 1) v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, lanes));
    return v;
#endif
}

/// The largest, and the least, of the 32 lanes, in each of them.
FLOTILLA_DEVICE unsigned warp_max(unsigned v) {
#if !defined(FLOTILLA_EMULATED) && __CUDA_ARCH__ >= 800
    return __reduce_max_sync(0xFFFFFFFFu, v);
#else
    for (int lanes = 16; lanes != 0; lanes >>= 1) v = max(v, __shfl_xor_sync(0xFFFFFFFFu, v, lanes));
    return v;
#endif
}
FLOTILLA_DEVICE unsigned warp_min(unsigned v) { return ~warp_max(~v); }
