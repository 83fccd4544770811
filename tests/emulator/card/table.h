// What a compiled kernel source and the emulated driver tell each other. Plain data: the driver includes this file
// and nothing else of the emulation.
#pragma once
#include <stddef.h>

namespace flotilla_emulated {

struct Launch {
    unsigned grid[3], block[3], shared_bytes;
    void** parameters;
    unsigned long long seed;
    void** arena; // the OS thread's; made by the first launch that finds it empty
    char* emergency_stack_top;
    bool early; // begins before the kernel ahead has ended, unless it waits for it
    char failure[2048];
};

struct KernelEntry {
    const char* name;
    void (*call)(void** parameters);
    const size_t* parameter_bytes;
    unsigned parameter_count;
    unsigned threads_max; // of __launch_bounds__
};

/// Exported by each compiled source under the name flotilla_emulated_module.
struct ModuleTable {
    const KernelEntry* kernels;
    unsigned kernel_count;
    int (*run)(const KernelEntry*, Launch*);
    void (*fault)(const char* what, const void* address);
};

} // namespace flotilla_emulated
