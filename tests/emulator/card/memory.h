// Shared memory, atomics, fences, and the asynchronous copy from global to shared memory. A copy happens when it is
// waited for and its destination is poison until then: a kernel that forgets to wait computes NaN.
#pragma once
#include "warp.h"

// Several OS threads may each run a block of the same kernel.
#define __shared__ static thread_local
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(::flotilla_emulated::self->block->shared)

namespace flotilla_emulated {

/// Bytes that are NaN as bf16, f16, f32 and f64, and an index far out of range.
constexpr int POISON = 0xFF;

inline bool in_shared(const void* address) {
    const Block* block = self->block;
    auto* at = static_cast<const char*>(address);
    return (at >= block->shared && at < block->shared + block->shared_bytes) ||
           (at >= block->static_shared && at < block->static_shared + block->static_shared_bytes);
}

inline void check_address(const void* address, size_t alignment, const char* what, int line) {
    if (reinterpret_cast<uintptr_t>(address) % alignment != 0)
        fail("%s in line %d: the address %p is not a multiple of %zu", what, line, address, alignment);
}

inline void copy_async_16(void* shared, const void* global, bool valid, int line = __builtin_LINE()) {
    Thread* thread = self;
    check_address(shared, 16, "copy_async_16 to shared memory", line);
    if (valid) check_address(global, 16, "copy_async_16 from global memory", line);
    if (!in_shared(shared)) fail("copy_async_16 in line %d: %p is not shared memory of the block", line, shared);
    if (thread->copy_count == thread->copy_capacity) {
        thread->copy_capacity = thread->copy_capacity == 0 ? 16 : thread->copy_capacity * 2;
        thread->copies = static_cast<Copy*>(realloc(thread->copies, thread->copy_capacity * sizeof(Copy)));
    }
    thread->copies[thread->copy_count++] = {shared, global, valid, thread->copy_group};
    memset(shared, POISON, 16);
}
inline void copy_async_commit() { self->copy_group++; }

/// A launch that was started early owes this. (What stands ahead of it in a stream has always ended here.)
inline void wait_for_previous() { self->block->waited = true; }

/// Waits until all but the last `pending` committed groups have arrived.
inline void copy_async_wait(unsigned pending) {
    Thread* thread = self;
    unsigned kept = 0;
    for (unsigned i = 0; i < thread->copy_count; i++) {
        const Copy copy = thread->copies[i];
        // Groups are counted from the first copy on: this one has `younger` committed groups after it.
        const bool committed = copy.group < thread->copy_group;
        const unsigned younger = committed ? thread->copy_group - 1 - copy.group : 0;
        if (!committed || younger < pending) {
            thread->copies[kept++] = copy;
            continue;
        }
        if (copy.valid) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
        thread->block->unfenced_count += !thread->unfenced;
        thread->unfenced = true;
    }
    thread->copy_count = kept;
}

inline void store_release_system(unsigned* to, unsigned value) { __atomic_store_n(to, value, __ATOMIC_RELEASE); }
inline unsigned load_acquire_system(const unsigned* from) {
    const unsigned value = __atomic_load_n(from, __ATOMIC_ACQUIRE);
    spin("load_acquire_system");
    return value;
}

template <class T, class Change> inline T atomic_change(T* at, Change change) {
    T old;
    __atomic_load(at, &old, __ATOMIC_SEQ_CST);
    for (;;) {
        T next = change(old);
        if (__atomic_compare_exchange(at, &old, &next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return old;
    }
}

} // namespace flotilla_emulated

template <class T> inline T atomicAdd(T* at, std::common_type_t<T> value) {
    return flotilla_emulated::atomic_change(at, [=](T old) { return T(old + value); });
}
template <class T> inline T atomicSub(T* at, std::common_type_t<T> value) {
    return flotilla_emulated::atomic_change(at, [=](T old) { return T(old - value); });
}
template <class T> inline T atomicMax(T* at, std::common_type_t<T> value) {
    return flotilla_emulated::atomic_change(at, [=](T old) { return old < value ? value : old; });
}
template <class T> inline T atomicMin(T* at, std::common_type_t<T> value) {
    return flotilla_emulated::atomic_change(at, [=](T old) { return value < old ? value : old; });
}
template <class T> inline T atomicExch(T* at, std::common_type_t<T> value) {
    return flotilla_emulated::atomic_change(at, [=](T) { return T(value); });
}
template <class T> inline T atomicCAS(T* at, std::common_type_t<T> expected, std::common_type_t<T> value) {
    return flotilla_emulated::atomic_change(at, [=](T old) { return old == expected ? T(value) : old; });
}
template <class T> inline T atomicOr(T* at, std::common_type_t<T> value) {
    return flotilla_emulated::atomic_change(at, [=](T old) { return T(old | value); });
}
template <class T> inline T atomicAnd(T* at, std::common_type_t<T> value) {
    return flotilla_emulated::atomic_change(at, [=](T old) { return T(old & value); });
}

inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned) { flotilla_emulated::spin("__nanosleep"); }
template <class T> inline T __ldg(const T* from) { return *from; }
template <class T> inline T __ldcs(const T* from) { return *from; }
template <class T> inline T __ldcg(const T* from) { return *from; }
template <class T> inline void __stcs(T* to, T value) { *to = value; }
inline long long clock64() { return flotilla_emulated::now_us() * 1000; }
#define __trap() ::flotilla_emulated::fail("__trap in line %d", __LINE__)
