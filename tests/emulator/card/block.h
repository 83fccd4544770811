// One block: its threads, who of them may run, __syncthreads, and the report when they cannot all go on. The next
// thread to run is drawn by chance from those that can: an order that a missing barrier does not survive.
#pragma once
#include "fiber.h"
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

namespace flotilla_emulated {

constexpr unsigned THREADS_MAX = 1024, WARP_LANES = 32, WARPS_MAX = THREADS_MAX / WARP_LANES;
constexpr size_t STACK_BYTES = 64 << 10, PAGE = 4096;
/// The largest dynamic shared memory of any card (227 KB), in whole pages.
constexpr size_t SHARED_BYTES_MAX = 232 << 10;
constexpr size_t FAILURE_BYTES = 2048;

/// Lanes with one mask that stand at one warp-wide operation, waiting for the rest of that mask.
struct Meeting {
    unsigned mask, arrived;
    const char* what;
};

struct Warp {
    void* slots[WARP_LANES]; // what each lane brought: a pointer into its own stack
    Meeting meetings[WARP_LANES];
    unsigned meeting_count, present, exited;
    Thread* threads;
};

struct Block {
    const char* kernel;
    dim3 grid, size;
    uint3 index;
    void (*call)(void** parameters);
    void** parameters;
    char* shared; // dynamic
    size_t shared_bytes;
    char *static_shared;
    size_t static_shared_bytes;
    unsigned thread_count, exited_count, ready_count;
    unsigned barrier_arrived;
    unsigned unfenced_count; // of its threads
    int barrier_line;
    unsigned long long chance;
    MainContext main;
    bool waited; // for the kernel ahead, some thread
    bool failed;
    char failure[FAILURE_BYTES];
    Thread* ready[THREADS_MAX];
};

/// All that an OS thread needs to run blocks, taken once and used for every launch on it.
struct Arena {
    Block block;
    Warp warps[WARPS_MAX];
    Thread threads[THREADS_MAX];
    char emergency_stack[64 << 10]; // where the report of a stack overflow finds room
    char* shared_end;               // a guard page follows
};

inline unsigned long long draw(unsigned long long& state) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

[[noreturn]] inline void leave_failed(Block* block) {
    block->failed = true;
    switch_out(self, &block->main);
    __builtin_unreachable();
}

/// Ends the launch with a report that names the kernel, the block and the thread; the fibers are left where they are.
[[noreturn]] __attribute__((format(printf, 1, 2), noinline, cold)) inline void fail(const char* format, ...) {
    Thread* thread = self;
    Block* block = thread->block;
    int used = snprintf(block->failure, FAILURE_BYTES, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ",
                        block->kernel, block->index.x, block->index.y, block->index.z, thread->index.x,
                        thread->index.y, thread->index.z);
    va_list rest;
    va_start(rest, format);
    vsnprintf(block->failure + used, FAILURE_BYTES - size_t(used), format, rest);
    va_end(rest);
    leave_failed(block);
}

/// Takes one of those that can run, by chance.
inline Thread* draw_ready(Block* block) {
    const unsigned at = unsigned(((draw(block->chance) >> 32) * block->ready_count) >> 32);
    Thread* chosen = block->ready[at];
    block->ready[at] = block->ready[--block->ready_count];
    return chosen;
}

/// Leaves the running thread until somebody makes it ready again. With nobody to run the launch takes over: it is
/// done, or it is a deadlock.
inline void wait_ready(Thread* thread, const char* what, int line) {
    Block* block = thread->block;
    thread->waits_for = what;
    thread->line = line;
    thread->spins = 0;
    if (block->ready_count == 0) switch_out(thread, &block->main);
    else switch_threads(thread, draw_ready(block));
    thread->waits_for = nullptr;
}

inline void barrier(int line) {
    Thread* thread = self;
    Block* block = thread->block;
    if (block->barrier_arrived != 0 && block->barrier_line != line)
        fail("divergent barrier: stands at __syncthreads in line %d, others of its block at the one in line %d", line,
             block->barrier_line);
    block->barrier_line = line;
    if (++block->barrier_arrived < block->thread_count) {
        wait_ready(thread, "__syncthreads", line);
        return;
    }
    block->barrier_arrived = 0;
    // Everybody else waits here: all of them can run, and this one goes on.
    Thread* first = thread - thread->number;
    block->ready_count = 0;
    for (unsigned i = 0; i < block->thread_count; i++)
        if (first + i != thread) block->ready[block->ready_count++] = first + i;
}

inline long long now_us() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000LL + time.tv_nsec / 1000;
}

/// A thread that polls memory lets the others of its block run, then other OS threads, and gives up after a while.
inline void spin(const char* what) {
    Thread* thread = self;
    Block* block = thread->block;
    if (block->ready_count != 0) {
        Thread* next = draw_ready(block);
        block->ready[block->ready_count++] = thread;
        switch_threads(thread, next);
    }
    if (++thread->spins == 1) thread->spins_since_us = now_us();
    if (thread->spins % 64 == 0) sched_yield();
    if (thread->spins % 4096 == 0) {
        static const char* limit = getenv("FLOTILLA_EMULATED_SPIN_SECONDS");
        const long long seconds = limit ? atoll(limit) : 60;
        if (now_us() - thread->spins_since_us > seconds * 1000000)
            fail("has polled memory with %s for %lld s", what, seconds);
    }
}

void drop_copies(Thread* thread);

[[noreturn]] inline void fiber_main() {
    Thread* thread = self;
    Block* block = thread->block;
    block->call(block->parameters);
    thread->exited = true;
    block->exited_count++;
    if (block->ready_count == 0) switch_out(thread, &block->main);
    else switch_threads(thread, draw_ready(block));
    __builtin_unreachable();
}

/// Who waits for what, when nobody can run.
inline void report_deadlock(Block* block, Thread* threads) {
    char* out = block->failure;
    char* end = out + FAILURE_BYTES;
    out += snprintf(out, FAILURE_BYTES, "kernel %s, block (%u, %u, %u): no thread can go on:", block->kernel,
                    block->index.x, block->index.y, block->index.z);
    bool told[THREADS_MAX] = {};
    const char* separator = "";
    for (unsigned i = 0; i < block->thread_count && end - out > 200; i++) {
        if (told[i]) continue;
        const Thread& thread = threads[i];
        unsigned alike = 0;
        for (unsigned j = i; j < block->thread_count; j++) {
            const Thread& other = threads[j];
            if (other.exited != thread.exited || (!thread.exited && (other.waits_for != thread.waits_for || other.line != thread.line)))
                continue;
            told[j] = true;
            alike++;
        }
        out += snprintf(out, size_t(end - out), "%s thread (%u, %u, %u)", separator, thread.index.x, thread.index.y,
                        thread.index.z);
        if (alike > 1) out += snprintf(out, size_t(end - out), " and %u more", alike - 1);
        if (thread.exited) out += snprintf(out, size_t(end - out), " returned");
        else out += snprintf(out, size_t(end - out), " at %s in line %d", thread.waits_for, thread.line);
        separator = ";";
    }
}

} // namespace flotilla_emulated

#define threadIdx (::flotilla_emulated::self->index)
#define blockIdx (::flotilla_emulated::self->block->index)
#define blockDim (::flotilla_emulated::self->block->size)
#define gridDim (::flotilla_emulated::self->block->grid)
static constexpr int warpSize = 32;

inline void __syncthreads(int line = __builtin_LINE()) { flotilla_emulated::barrier(line); }
