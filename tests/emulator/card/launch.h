// One launch: the blocks of the grid, one after another in shuffled order, and the table by which the emulated
// driver finds the kernels of a compiled source. `launch<kernel>(..)` at the end is for programs without a driver.
#pragma once
#include "faults.h"
#include "table.h"
#include "warpgroup.h"
#include <link.h>

namespace flotilla_emulated {

inline Arena* arena_create() {
    // [Arena | guard] [shared memory | guard] then a stack with a guard below it for each thread
    const size_t head = (sizeof(Arena) + PAGE - 1) / PAGE * PAGE;
    const size_t stack_stride = STACK_BYTES + PAGE;
    const size_t bytes = head + PAGE + SHARED_BYTES_MAX + PAGE + THREADS_MAX * stack_stride;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    auto* arena = static_cast<Arena*>(memory);
    char* at = static_cast<char*>(memory) + head;
    mprotect(at, PAGE, PROT_NONE);
    arena->shared_end = at + PAGE + SHARED_BYTES_MAX;
    mprotect(arena->shared_end, PAGE, PROT_NONE);
    at = arena->shared_end + PAGE;
    for (unsigned i = 0; i < THREADS_MAX; i++, at += stack_stride) {
        mprotect(at, PAGE, PROT_NONE);
        arena->threads[i].stack_top = at + stack_stride;
    }
    return arena;
}

/// The thread-local variables of this library are its static shared memory, and nothing else that outlives a block.
static thread_local char shared_anchor;
inline void find_static_shared(Block* block) {
    shared_anchor = 0; // they are there from the first touch on
    block->static_shared = nullptr;
    block->static_shared_bytes = 0;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
            auto* block = static_cast<Block*>(data);
            for (int i = 0; i < info->dlpi_phnum; i++) {
                const auto& segment = info->dlpi_phdr[i];
                if (segment.p_type != PT_TLS || info->dlpi_tls_data == nullptr) continue;
                auto* start = static_cast<char*>(info->dlpi_tls_data);
                if (&shared_anchor < start || &shared_anchor >= start + segment.p_memsz) continue;
                block->static_shared = start;
                block->static_shared_bytes = segment.p_memsz;
                return 1;
            }
            return 0;
        },
        block);
}

/// Runs one block; false: `block->failure` says why not.
inline bool run_block(Arena* arena) {
    Block* block = &arena->block;
    memset(block->shared, POISON, block->shared_bytes);
    memset(block->static_shared, POISON, block->static_shared_bytes);
    block->exited_count = block->barrier_arrived = block->unfenced_count = 0;
    block->failed = block->waited = false;
    const unsigned count = block->thread_count;
    for (unsigned w = 0; w * WARP_LANES < count; w++) {
        const unsigned lanes = count - w * WARP_LANES;
        arena->warps[w].meeting_count = 0;
        arena->warps[w].present = lanes >= WARP_LANES ? ~0u : (1u << lanes) - 1;
        arena->warps[w].threads = arena->threads + w * WARP_LANES;
    }
    for (unsigned i = 0; i < count; i++) {
        Thread& thread = arena->threads[i];
        thread.index = {i % block->size.x, i / block->size.x % block->size.y, i / block->size.x / block->size.y};
        thread.number = i;
        thread.lane = i % WARP_LANES;
        thread.warp = arena->warps + i / WARP_LANES;
        thread.block = block;
        thread.waits_for = nullptr;
        thread.exited = false;
        thread.spins = thread.copy_count = thread.copy_group = 0;
        thread.product_count = thread.product_group = 0;
        thread.unfenced = thread.product_fenced = false;
        fiber_prepare(&thread);
        block->ready[i] = &thread;
    }
    block->ready_count = count;
    switch_in(&block->main, draw_ready(block));
    if (!block->failed && block->exited_count != count) {
        report_deadlock(block, arena->threads);
        block->failed = true;
    }
    return !block->failed;
}

inline unsigned long long scramble(unsigned long long v) {
    v = (v ^ v >> 30) * 0xBF58476D1CE4E5B9ull;
    v = (v ^ v >> 27) * 0x94D049BB133111EBull;
    return v ^ v >> 31;
}

inline unsigned long long greatest_common_divisor(unsigned long long a, unsigned long long b) {
    while (b != 0) {
        const auto rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/// 0, or 1 with `launch->failure` filled in.
inline int run_launch(const KernelEntry* kernel, Launch* launch) {
    if (*launch->arena == nullptr) *launch->arena = arena_create();
    auto* arena = static_cast<Arena*>(*launch->arena);
    if (arena == nullptr) {
        snprintf(launch->failure, sizeof launch->failure, "kernel %s: no memory for its threads' stacks", kernel->name);
        return 1;
    }
    launch->emergency_stack_top = arena->emergency_stack + sizeof arena->emergency_stack - 64;
    Block* block = &arena->block;
    block->kernel = kernel->name;
    block->grid = dim3(launch->grid[0], launch->grid[1], launch->grid[2]);
    block->size = dim3(launch->block[0], launch->block[1], launch->block[2]);
    block->thread_count = block->size.x * block->size.y * block->size.z;
    block->call = kernel->call;
    block->parameters = launch->parameters;
    block->shared_bytes = launch->shared_bytes;
    block->shared = arena->shared_end - (launch->shared_bytes + 15) / 16 * 16;
    find_static_shared(block);
    unsigned long long seed = launch->seed;
    for (const char* c = kernel->name; *c; c++) seed = scramble(seed ^ static_cast<unsigned char>(*c));
    // Any step without a common divisor visits each block once.
    const unsigned long long blocks = 1ull * block->grid.x * block->grid.y * block->grid.z;
    unsigned long long step = seed % blocks, at = seed / 7 % blocks;
    while (greatest_common_divisor(step, blocks) != 1) step++;
    for (unsigned long long i = 0; i < blocks; i++, at = (at + step) % blocks) {
        block->index = {unsigned(at % block->grid.x), unsigned(at / block->grid.x % block->grid.y),
                        unsigned(at / block->grid.x / block->grid.y)};
        block->chance = scramble(seed + at) | 1;
        if (run_block(arena)) {
            if (!launch->early || block->waited) continue;
            snprintf(block->failure, sizeof block->failure,
                     "kernel %s: is started early, and block (%u, %u, %u) ends without having waited for the kernel ahead",
                     kernel->name, block->index.x, block->index.y, block->index.z);
        }
        memcpy(launch->failure, block->failure, sizeof launch->failure);
        return 1;
    }
    return 0;
}

template <auto KERNEL> struct Call;
template <class... Parameters, void (*KERNEL)(Parameters...)> struct Call<KERNEL> {
    static constexpr size_t bytes[sizeof...(Parameters) + 1] = {sizeof(Parameters)..., 0};
    static constexpr unsigned count = sizeof...(Parameters);
    template <size_t... I> static void unpack([[maybe_unused]] void** parameters, std::index_sequence<I...>) {
        KERNEL(*static_cast<std::remove_cv_t<std::remove_reference_t<Parameters>>*>(parameters[I])...);
    }
    static void call(void** parameters) { unpack(parameters, std::index_sequence_for<Parameters...>()); }
    static constexpr KernelEntry entry(const char* name, unsigned threads_max) {
        return {name, &call, bytes, count, threads_max};
    }
    template <class... Arguments> static int launch(dim3 grid, dim3 block, unsigned shared_bytes, Arguments... arguments) {
        static_assert(sizeof...(Arguments) == sizeof...(Parameters));
        return launch_converted(grid, block, shared_bytes, static_cast<Parameters>(arguments)...);
    }
    static int launch_converted(dim3 grid, dim3 block, unsigned shared_bytes, Parameters... arguments) {
        void* parameters[sizeof...(Parameters) + 1] = {(void*)&arguments..., nullptr};
        static void* arena = nullptr;
        const char* seed = getenv("FLOTILLA_EMULATED_SEED");
        static Launch launch;
        launch = {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes, parameters,
                  seed ? strtoull(seed, nullptr, 10) : 1, &arena, nullptr, false, {}};
        const KernelEntry kernel = entry("kernel", THREADS_MAX);
        const int failed = run_launch(&kernel, &launch);
        if (failed) fprintf(stderr, "%s\n", launch.failure);
        return failed;
    }
};

/// For a program without a driver: `launch<kernel>(grid, block, shared bytes, arguments..)`; 0 when all went well.
template <auto KERNEL, class... Arguments>
inline int launch(dim3 grid, dim3 block, unsigned shared_bytes, Arguments... arguments) {
    return Call<KERNEL>::launch(grid, block, shared_bytes, arguments...);
}

/// Memory as the emulated card gives it: poisoned, a guard page right behind it (as near as 16 bytes allow).
template <class T> inline T* guarded(size_t count) {
    const size_t bytes = (count * sizeof(T) + 15) / 16 * 16, pages = (bytes + PAGE - 1) / PAGE * PAGE;
    auto* memory = static_cast<char*>(mmap(nullptr, pages + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(memory + pages, PAGE, PROT_NONE);
    memset(memory, POISON, pages);
    return reinterpret_cast<T*>(memory + pages - bytes);
}

} // namespace flotilla_emulated
