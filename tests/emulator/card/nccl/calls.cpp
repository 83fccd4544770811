// NCCL's functions: arguments checked, groups gathered, operations handed to the emulated driver's streams (which
// record them where they are being captured).
#include "nccl.h"
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#define NCCL_API extern "C" __attribute__((visibility("default")))

// Of the emulated driver.
extern "C" int flotilla_emulated_enqueue(void* stream, int (*function)(void*, int failed), void* data, void (*drop)(void*));
extern "C" int flotilla_emulated_in_live_memory(const void* address, uint64_t bytes);
extern "C" int cuCtxGetDevice(int* device);
extern "C" int cuStreamIsCapturing(void* stream, int* status);

namespace nccl {

static std::mutex last_error_lock;
static std::string& last_error() {
    static auto* text = new std::string;
    return *text;
}

ncclResult_t failed(ncclResult_t code, const std::string& text) {
    std::lock_guard guard(last_error_lock);
    last_error() = text;
    return code;
}

struct Handle {
    static constexpr uint32_t MAGIC = 0x4D4D4F43;
    uint32_t magic = MAGIC;
    std::shared_ptr<Comm> comm;
};

/// What one group does with one communicator on one stream.
struct Batch {
    Handle* handle;
    void* stream;
    std::vector<Operation> operations;
};
struct Queued {
    std::shared_ptr<Comm> comm;
    std::vector<Operation> operations;
    bool recorded;
    Queued(const std::shared_ptr<Comm>& comm, const Batch& batch, bool recorded) : comm(comm), operations(batch.operations), recorded(recorded) {
        comm->recorded += recorded;
    }
    ~Queued() { comm->recorded -= recorded; }
};
struct Group {
    int depth = 0;
    std::vector<Batch> batches;
    std::vector<Handle*> joining;
    ncclResult_t error = ncclSuccess;
};
static thread_local Group group;

static ncclResult_t start(const std::shared_ptr<Comm>& comm, const Batch& batch) {
    for (const auto& operation : batch.operations)
        if (!connect(*comm, operation)) return failed(ncclInternalError, "aborted while ranks were missing");
    int capturing = 0;
    cuStreamIsCapturing(batch.stream, &capturing);
    auto* queued = new Queued(comm, batch, capturing != 0);
    const int code = flotilla_emulated_enqueue(
        batch.stream,
        [](void* data, int failed) {
            auto* queued = static_cast<Queued*>(data);
            if (!failed) run(*queued->comm, queued->operations);
            return 0;
        },
        queued, [](void* data) { delete static_cast<Queued*>(data); });
    return code == 0 ? ncclSuccess : failed(ncclUnhandledCudaError, "CUDA error " + std::to_string(code) + " while an operation was queued");
}

static ncclResult_t start_all(const std::shared_ptr<Comm>& comm, const std::vector<Batch>& batches) {
    ncclResult_t result = ncclSuccess;
    for (const auto& batch : batches)
        if (result == ncclSuccess) result = start(comm, batch);
    return result;
}

/// What one call, or one group of them, does with one communicator. One that does not block does it as NCCL does: on a
/// thread of its own, into a stream that the caller's thread may be recording, and is in progress meanwhile.
static ncclResult_t call(Handle* handle, std::vector<Batch> batches) {
    auto comm = handle->comm;
    if (comm->blocking) return start_all(comm, batches);
    int state = ncclSuccess;
    if (!comm->state.compare_exchange_strong(state, ncclInProgress)) return static_cast<ncclResult_t>(state);
    comm->calls++;
    std::thread([comm, batches = std::move(batches)] {
        const ncclResult_t result = start_all(comm, batches);
        // What went wrong meanwhile on the stream stays.
        int state = ncclInProgress;
        comm->state.compare_exchange_strong(state, result);
        comm->calls--;
    }).detach();
    return ncclInProgress;
}

/// As NCCL has it: one call after the other.
static ncclResult_t ready(const Comm& comm) {
    if (comm.state == ncclInProgress) return failed(ncclInvalidArgument, "Attempt to use communicator before the previous operation returned ncclSuccess");
    if (comm.state != ncclSuccess || comm.finalized) return failed(ncclInvalidUsage, "the communicator has failed, or is finalized");
    return ncclSuccess;
}

static ncclResult_t add(Handle* handle, void* stream, Operation operation) {
    if (!handle || handle->magic != Handle::MAGIC) return failed(ncclInvalidArgument, "this is no communicator");
    const Comm& comm = *handle->comm;
    if (bytes_of(operation.type) == 0) return failed(ncclInvalidArgument, "unknown data type " + std::to_string(operation.type));
    if (const ncclResult_t refused = ready(comm)) return refused;
    const size_t bytes = operation.count * bytes_of(operation.type);
    const size_t from = operation.from ? bytes : 0, to = operation.kind == Kind::AllGather ? bytes * size_t(comm.count) : bytes;
    const bool reads = operation.kind != Kind::Recv && !(operation.kind == Kind::Broadcast && comm.rank != operation.peer);
    if ((reads && !flotilla_emulated_in_live_memory(operation.from, from)) ||
        (operation.kind != Kind::Send && !flotilla_emulated_in_live_memory(operation.to, to)))
        return failed(ncclInvalidArgument, "a buffer is not memory of a card, or too short");
    if (operation.peer < 0 || operation.peer >= comm.count) return failed(ncclInvalidArgument, "rank " + std::to_string(operation.peer) + " of " + std::to_string(comm.count));
    if (group.depth == 0) return call(handle, {{handle, stream, {operation}}});
    for (auto& batch : group.batches)
        if (batch.handle == handle && batch.stream == stream) {
            batch.operations.push_back(operation);
            return ncclSuccess;
        }
    group.batches.push_back({handle, stream, {operation}});
    return ncclSuccess;
}

static ncclResult_t begin(Handle* handle) {
    if (handle->comm->blocking) return join(*handle->comm);
    std::thread([comm = handle->comm] { join(*comm); }).detach();
    return ncclInProgress;
}

/// NCCL ends no communicator, in peace or not, before all graphs that hold it are gone.
static void wait_for_graphs(const Comm& comm) {
    for (unsigned turn = 0; comm.recorded > 0; turn++) pause(turn);
}

static std::atomic<int> aborts{0};

} // namespace nccl

using namespace nccl;

/// How many communicators of this process were aborted: for tests.
NCCL_API int flotilla_emulated_nccl_aborts() { return aborts; }

NCCL_API ncclResult_t ncclGetVersion(int* version) {
    *version = 22703;
    return ncclSuccess;
}
NCCL_API ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    std::random_device random;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/flotilla-emulated-nccl-%08x%08x%08x", random(), random(), random());
    return ncclSuccess;
}
NCCL_API ncclResult_t ncclCommInitRankConfig(Handle** comm, int count, ncclUniqueId id, int rank, ncclConfig_t* config) {
    if (!comm || count < 1 || count > RANKS_MAX || rank < 0 || rank >= count || id.internal[0] != '/' || !memchr(id.internal, 0, sizeof id.internal))
        return failed(ncclInvalidArgument, "rank, number of ranks or id is not valid");
    int device;
    if (int code = cuCtxGetDevice(&device)) return failed(ncclUnhandledCudaError, "CUDA error " + std::to_string(code) + ": no current context");
    auto* handle = new Handle;
    handle->comm = std::make_shared<Comm>();
    handle->comm->blocking = !config || config->blocking != 0;
    handle->comm->rank = rank;
    handle->comm->count = count;
    handle->comm->device = device;
    handle->comm->name = id.internal;
    *comm = handle;
    if (group.depth > 0) {
        group.joining.push_back(handle);
        return ncclSuccess;
    }
    return begin(handle);
}
NCCL_API ncclResult_t ncclCommInitRank(Handle** comm, int count, ncclUniqueId id, int rank) {
    return ncclCommInitRankConfig(comm, count, id, rank, nullptr);
}
NCCL_API ncclResult_t ncclGroupStart() {
    group.depth++;
    return ncclSuccess;
}
NCCL_API ncclResult_t ncclGroupEnd() {
    if (group.depth == 0) return failed(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group.depth > 0) return ncclSuccess;
    Group ended = std::move(group);
    group = Group();
    ncclResult_t result = ncclSuccess;
    // The ranks of one thread wait for each other: all at once.
    std::vector<std::thread> threads;
    for (Handle* handle : ended.joining) {
        if (!handle->comm->blocking) result = begin(handle);
        else threads.emplace_back([handle] { join(*handle->comm); });
    }
    for (auto& thread : threads) thread.join();
    for (Handle* handle : ended.joining)
        if (handle->comm->blocking && handle->comm->state != ncclSuccess) result = static_cast<ncclResult_t>(handle->comm->state.load());
    // Each communicator's together: one call may wait for another of this thread's.
    while (!ended.batches.empty()) {
        Handle* handle = ended.batches.front().handle;
        const auto others = std::stable_partition(ended.batches.begin(), ended.batches.end(), [=](const Batch& batch) { return batch.handle == handle; });
        const ncclResult_t called = call(handle, {ended.batches.begin(), others});
        if (result == ncclSuccess || result == ncclInProgress) result = called == ncclSuccess ? result : called;
        ended.batches.erase(ended.batches.begin(), others);
    }
    return result;
}
#define CHECK_COMM(comm)                                                                                               \
    if (!comm || comm->magic != Handle::MAGIC) return failed(ncclInvalidArgument, "this is no communicator")
NCCL_API ncclResult_t ncclCommCount(Handle* comm, int* count) {
    CHECK_COMM(comm);
    *count = comm->comm->count;
    return ncclSuccess;
}
NCCL_API ncclResult_t ncclCommCuDevice(Handle* comm, int* device) {
    CHECK_COMM(comm);
    *device = comm->comm->device;
    return ncclSuccess;
}
NCCL_API ncclResult_t ncclCommUserRank(Handle* comm, int* rank) {
    CHECK_COMM(comm);
    *rank = comm->comm->rank;
    return ncclSuccess;
}
NCCL_API ncclResult_t ncclCommGetAsyncError(Handle* comm, ncclResult_t* error) {
    CHECK_COMM(comm);
    *error = static_cast<ncclResult_t>(comm->comm->state.load());
    return ncclSuccess;
}
NCCL_API ncclResult_t ncclCommFinalize(Handle* comm) {
    CHECK_COMM(comm);
    if (const ncclResult_t refused = ready(*comm->comm)) return refused;
    comm->comm->finalized = true;
    if (comm->comm->blocking) {
        wait_for_graphs(*comm->comm);
        return ncclSuccess;
    }
    comm->comm->state = ncclInProgress;
    std::thread([comm = comm->comm] {
        wait_for_graphs(*comm);
        comm->state = ncclSuccess;
    }).detach();
    return ncclInProgress;
}
// Operations that are queued, and in no graph, keep what they need: the handle can go at once.
NCCL_API ncclResult_t ncclCommDestroy(Handle* comm) {
    if (!comm) return ncclSuccess;
    CHECK_COMM(comm);
    for (unsigned turn = 0; comm->comm->calls > 0; turn++) pause(turn);
    wait_for_graphs(*comm->comm);
    comm->magic = 0;
    delete comm;
    return ncclSuccess;
}
NCCL_API ncclResult_t ncclCommAbort(Handle* comm) {
    if (!comm) return ncclSuccess;
    CHECK_COMM(comm);
    aborts++;
    comm->comm->aborted = true;
    return ncclCommDestroy(comm);
}

NCCL_API ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type, ncclRedOp_t operation, Handle* comm, void* stream) {
    if (operation < ncclSum || operation > ncclMin) return failed(ncclInvalidArgument, "the emulated NCCL has sum, product, maximum and minimum");
    return add(comm, stream, {Kind::AllReduce, from, to, count, type, operation, 0});
}
NCCL_API ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type, Handle* comm, void* stream) {
    return add(comm, stream, {Kind::AllGather, from, to, count, type, 0, 0});
}
NCCL_API ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root, Handle* comm, void* stream) {
    return add(comm, stream, {Kind::Broadcast, from, to, count, type, 0, root});
}
NCCL_API ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer, Handle* comm, void* stream) {
    return add(comm, stream, {Kind::Send, from, nullptr, count, type, 0, peer});
}
NCCL_API ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer, Handle* comm, void* stream) {
    return add(comm, stream, {Kind::Recv, nullptr, to, count, type, 0, peer});
}
NCCL_API const char* ncclGetErrorString(int code) {
    switch (code) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error";
    case ncclSystemError: return "unhandled system error";
    case ncclInternalError: return "internal error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
    }
    return "unknown result code";
}
NCCL_API const char* ncclGetLastError(Handle*) {
    static thread_local std::string copy;
    std::lock_guard guard(last_error_lock);
    copy = last_error();
    return copy.c_str();
}
