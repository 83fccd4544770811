// Kernel launches: the checks that the driver makes, a copy of the arguments, and the run itself on the stream's
// thread. A kernel that touches memory which is not its own is stopped by a signal; the handler sends it back into
// the emulation, which ends the launch with a report. The process goes on, the stream is lost.
#include "driver.h"
#include <algorithm>
#include <csignal>
#include <cstring>
#include <ucontext.h>
#include <unistd.h>

namespace card {

using flotilla_emulated::Launch;

/// What the handler needs to know of the launch on this thread.
struct Running {
    const ModuleTable* table;
    Launch* launch;
    bool faulted;
    char report[512];
};
static thread_local Running* running = nullptr;

static struct sigaction earlier_segv, earlier_bus, earlier_fpe;

static void hand_on(int signal, siginfo_t* info, void* context) {
    const struct sigaction& earlier = signal == SIGSEGV ? earlier_segv : signal == SIGBUS ? earlier_bus : earlier_fpe;
    if (earlier.sa_flags & SA_SIGINFO) {
        earlier.sa_sigaction(signal, info, context);
    } else if (earlier.sa_handler != SIG_DFL && earlier.sa_handler != SIG_IGN) {
        earlier.sa_handler(signal);
    } else {
        ::signal(signal, SIG_DFL); // the instruction runs again, and the signal does what it does
    }
}

static void on_fault(int signal, siginfo_t* info, void* context) {
    Running* run = running;
    if (run == nullptr || run->faulted) return hand_on(signal, info, context);
    run->faulted = true;
    if (signal == SIGFPE) {
        snprintf(run->report, sizeof run->report, "an integer is divided by zero");
    } else {
        snprintf(run->report, sizeof run->report, "touches memory that is not its own: %s", describe_address(info->si_addr).c_str());
    }
#if defined(__x86_64__)
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    if (signal == SIGSEGV && (registers[REG_ERR] & 2)) strncat(run->report, " (a write)", sizeof run->report - strlen(run->report) - 1);
    registers[REG_RIP] = reinterpret_cast<greg_t>(run->table->fault);
    registers[REG_RDI] = reinterpret_cast<greg_t>(run->report);
    registers[REG_RSI] = reinterpret_cast<greg_t>(signal == SIGFPE ? nullptr : info->si_addr);
    registers[REG_RSP] = reinterpret_cast<greg_t>(run->launch->emergency_stack_top) / 16 * 16 - 8;
#else
    fprintf(stderr, "emulated card: a kernel %s\n", run->report);
    abort();
#endif
}

void install_fault_handler() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &earlier_segv);
        sigaction(SIGBUS, &action, &earlier_bus);
        sigaction(SIGFPE, &action, &earlier_fpe);
    });
}

void prepare_thread_for_faults() {
    // Rust's threads have one of their own; this one is the emulation's.
    static constexpr size_t BYTES = 64 << 10;
    static thread_local std::unique_ptr<char[]> memory(new char[BYTES]);
    stack_t stack = {};
    stack.ss_sp = memory.get();
    stack.ss_size = BYTES;
    sigaltstack(&stack, nullptr);
}

/// A launch with its own copy of the arguments.
struct Prepared {
    std::shared_ptr<void> library;
    const ModuleTable* table;
    const KernelEntry* entry;
    unsigned grid[3], block[3], shared_bytes;
    bool early;
    std::vector<std::vector<char>> arguments;
};

static CUresult run(const Prepared& prepared, Stream& stream) {
    if (settings().broken_by && access(settings().broken_by, F_OK) == 0) {
        stream_failed(stream, CUDA_ERROR_ILLEGAL_ADDRESS, "broken by FLOTILLA_EMULATED_BROKEN_BY");
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    std::vector<void*> parameters;
    for (const auto& argument : prepared.arguments) parameters.push_back(const_cast<char*>(argument.data()));
    parameters.push_back(nullptr);
    auto launch = std::make_unique<Launch>();
    std::copy_n(prepared.grid, 3, launch->grid);
    std::copy_n(prepared.block, 3, launch->block);
    launch->shared_bytes = prepared.shared_bytes;
    launch->early = prepared.early;
    launch->parameters = parameters.data();
    launch->seed = settings().seed;
    launch->arena = &stream.arena;
    Running now = {prepared.table, launch.get(), false, {}};
    running = &now;
    const int failed = prepared.table->run(prepared.entry, launch.get());
    running = nullptr;
    if (!failed) return CUDA_SUCCESS;
    const CUresult code = now.faulted ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_ERROR_LAUNCH_FAILED;
    stream_failed(stream, code, launch->failure);
    return code;
}

} // namespace card

using namespace card;

/// As cuda.h lays it out; of the attributes the one that is known here.
struct LaunchAttribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int early_allowed;
    };
};
struct LaunchConfig {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    Stream* stream;
    LaunchAttribute* attributes;
    unsigned attribute_count;
};
constexpr int PROGRAMMATIC_STREAM_SERIALIZATION = 6;

CARD_API CUresult cuLaunchKernelEx(const LaunchConfig* config, Function* function, void** parameters, void** extra) {
    CHECK(config != nullptr, CUDA_ERROR_INVALID_VALUE);
    const auto [grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, handle, attributes, attribute_count] = *config;
    bool early = false;
    for (unsigned i = 0; i < attribute_count; i++) {
        CHECK(attributes[i].id == PROGRAMMATIC_STREAM_SERIALIZATION, CUDA_ERROR_NOT_SUPPORTED);
        early |= attributes[i].early_allowed != 0;
    }
    CHECK(!early || settings().capability_major >= 9, CUDA_ERROR_NOT_SUPPORTED);
    Stream* stream = stream_of(handle);
    CHECK(valid(function) && stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    CHECK(extra == nullptr, CUDA_ERROR_NOT_SUPPORTED);
    CHECK(grid_x && grid_y && grid_z && block_x && block_y && block_z, CUDA_ERROR_INVALID_VALUE);
    CHECK(grid_x <= 2147483647u && grid_y <= 65535 && grid_z <= 65535, CUDA_ERROR_INVALID_VALUE);
    CHECK(block_x <= 1024 && block_y <= 1024 && block_z <= 64, CUDA_ERROR_INVALID_VALUE);
    const uint64_t threads = uint64_t(block_x) * block_y * block_z;
    CHECK(threads <= 1024, CUDA_ERROR_INVALID_VALUE);
    CHECK(threads <= function->entry->threads_max, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    CHECK(shared_bytes <= function->dynamic_shared_max, CUDA_ERROR_INVALID_VALUE);
    CHECK(parameters != nullptr || function->entry->parameter_count == 0, CUDA_ERROR_INVALID_VALUE);

    auto prepared = std::make_shared<Prepared>(
        Prepared{function->library, function->table, function->entry, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, early, {}});
    for (unsigned i = 0; i < function->entry->parameter_count; i++) {
        const auto* argument = static_cast<const char*>(parameters[i]);
        prepared->arguments.emplace_back(argument, argument + function->entry->parameter_bytes[i]);
    }
    return enqueue(stream, NodeKind::Kernel, [prepared](Stream& stream, bool failed) {
        return failed ? CUDA_SUCCESS : run(*prepared, stream);
    });
}
CARD_API CUresult cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                                 unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream* handle, void** parameters,
                                 void** extra) {
    const LaunchConfig config = {grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, handle, nullptr, 0};
    return cuLaunchKernelEx(&config, function, parameters, extra);
}
CARD_API CUresult cuLaunchCooperativeKernel(Function*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream*, void**) {
    return CUDA_ERROR_NOT_SUPPORTED; // blocks run one after another
}

CARD_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Function* function, int threads, size_t shared_bytes) {
    CHECK(valid(function) && threads > 0, CUDA_ERROR_INVALID_VALUE);
    const size_t by_threads = 2048 / ((size_t(threads) + 31) / 32 * 32);
    const size_t by_shared = (settings().shared_optin_max + 1024) / (shared_bytes + 1024);
    *blocks = int(std::min({by_threads, by_shared, size_t(32)}));
    return CUDA_SUCCESS;
}
CARD_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, Function* function, int threads, size_t shared_bytes, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared_bytes);
}
