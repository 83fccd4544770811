// The emulated driver's own state: cards, contexts, streams, events, graphs, modules. A stream is an OS thread with
// a queue, so that what a caller forgets to wait for is not there yet. Handles are pointers to these structures;
// nothing is ever destroyed at process end, because streams may still be running then.
//
// Deliberately not: several contexts a card, memory pools of one's own, textures, managed memory, IPC, and the
// implicit ordering between the null stream and blocking streams (make streams non-blocking, as cudarc does).
#pragma once
#include "../table.h"
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

// The codes of cuda.h that are given out here.
enum CUresult : int {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
    CUDA_ERROR_FILE_NOT_FOUND = 301,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_ILLEGAL_STATE = 401,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_NOT_READY = 600,
    CUDA_ERROR_ILLEGAL_ADDRESS = 700,
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701,
    CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704,
    CUDA_ERROR_PEER_ACCESS_NOT_ENABLED = 705,
    CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712,
    CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED = 713,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_NOT_SUPPORTED = 801,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
    CUDA_ERROR_CAPTURED_EVENT = 907,
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908,
    CUDA_ERROR_UNKNOWN = 999,
};
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;

#define CARD_API extern "C" __attribute__((visibility("default")))

namespace card {

using flotilla_emulated::KernelEntry;
using flotilla_emulated::ModuleTable;

struct Stream;

/// What a stream does next. `failed`: an earlier piece of work on it did; only what others wait for is still done.
using Work = std::function<CUresult(Stream&, bool failed)>;

enum class NodeKind : int { Kernel = 0, Memcpy = 1, Memset = 2, Host = 3, Empty = 5 };
struct Node {
    NodeKind kind;
    Work work;
};

struct Graph {
    static constexpr uint32_t MAGIC = 0x48505247;
    uint32_t magic = MAGIC;
    std::vector<Node> nodes; // in the order of recording, which is one that respects every dependency
};
struct GraphExec {
    static constexpr uint32_t MAGIC = 0x43455845;
    uint32_t magic = MAGIC;
    std::shared_ptr<std::vector<Node>> nodes;
};

/// A capture under way. It ends where it began.
struct Capture {
    Graph* graph;
    Stream* origin;
    int mode; // 0 global, 1 thread-local, 2 relaxed
    std::thread::id thread;
    bool invalid = false;
    std::vector<Stream*> joined;
    std::map<Stream*, bool> pending; // joined streams with work that the origin has not waited for
};

struct Context {
    static constexpr uint32_t MAGIC = 0x54585443;
    uint32_t magic = MAGIC;
    int ordinal;
    int retained = 0;
    std::mutex lock;
    std::vector<Stream*> streams;
    Stream* null_stream = nullptr;
    std::map<int, bool> peers;
    uint64_t used_bytes = 0, total_bytes = 0;
    uint64_t pooled_bytes = 0; // freed in a stream's order: the pool has them until somebody waits
};

struct Stream {
    static constexpr uint32_t MAGIC = 0x4D525453;
    uint32_t magic = MAGIC;
    Context* context;
    std::mutex lock;
    std::condition_variable changed;
    std::deque<Work> queue;
    bool busy = false, closing = false, is_null = false;
    uint64_t asked = 0;          // pieces of work, ever
    uint64_t pageable_reads = 0; // copies to memory of the host's that is not pinned, ever
    CUresult error = CUDA_SUCCESS; // stays until the stream is destroyed
    std::string error_text;
    Capture* capture = nullptr;
    void* arena = nullptr; // the fibers' stacks; of the stream's thread alone
};

/// What is known of an event. Queued records and waits hold it: the event may be destroyed before they happen.
struct Moment {
    std::mutex lock;
    std::condition_variable changed;
    uint64_t recorded = 0, done = 0; // how many records were asked for, how many have happened
    long long done_ns = 0;
    CUresult error = CUDA_SUCCESS;
};
struct Event {
    static constexpr uint32_t MAGIC = 0x544E5645;
    uint32_t magic = MAGIC;
    bool timed = true;
    std::shared_ptr<Moment> moment = std::make_shared<Moment>();
    Capture* captured = nullptr;
    Stream* captured_stream = nullptr;
};

struct Module {
    static constexpr uint32_t MAGIC = 0x4C444F4D;
    uint32_t magic = MAGIC;
    std::shared_ptr<void> library;
    const ModuleTable* table;
    std::vector<std::unique_ptr<struct Function>> functions;
};
struct Function {
    static constexpr uint32_t MAGIC = 0x434E5546;
    uint32_t magic = MAGIC;
    std::shared_ptr<void> library; // held by each launch under way too
    const ModuleTable* table;
    const KernelEntry* entry;
    unsigned dynamic_shared_max = 48 << 10;
};

template <class T> inline bool valid(const T* handle) { return handle != nullptr && handle->magic == T::MAGIC; }

/// What the environment says the cards are, read once.
struct Settings {
    int card_count;
    uint64_t memory_bytes;
    int capability_major, capability_minor;
    bool peers, quiet;
    unsigned long long seed;
    unsigned shared_optin_max;
    const char* broken_by; // a file: once it is there, every kernel fails
};
const Settings& settings();

Context* current_context();
void set_current_context(Context* context);
Context* context_of(int ordinal);
Stream* stream_of(Stream* handle); // the null stream of the current context for 0; null: not a stream

Stream* stream_start(Context* context, bool is_null);
CUresult stream_wait_idle(Stream* stream);
CUresult context_wait_idle(Context* context);
/// What the pool holds goes back to the card, as at the caller's waiting for stream, event or context.
void pool_release(Context* context);
/// Queues the work, or records it where the stream is being captured.
CUresult enqueue(Stream* stream, NodeKind kind, Work work);
/// Queues and waits: for the synchronous calls, on the null stream.
CUresult run_now(Stream* stream, Work work);

/// For calls that must not happen while somebody captures: the error, and the capture is spoiled.
CUresult refuse_in_capture();
void stream_failed(Stream& stream, CUresult code, const std::string& text);
void* arena_take();
void arena_give_back(void* arena);

/// Is all of [address, address + bytes) within one live buffer of a card, or within pinned host memory?
bool in_live_memory(CUdeviceptr address, uint64_t bytes);
bool is_pinned(const void* address, uint64_t bytes);
/// "4 bytes past the end of a buffer of 96 bytes", for the report of a fault.
std::string describe_address(const void* address);

void install_fault_handler();
void prepare_thread_for_faults();

#define CHECK(condition, code)                                                                                         \
    if (!(condition)) return code
#define CHECK_CONTEXT() CHECK(card::current_context() != nullptr, CUDA_ERROR_INVALID_CONTEXT)
#define CHECK_NO_CAPTURE()                                                                                             \
    if (CUresult refused = card::refuse_in_capture(); refused != CUDA_SUCCESS) return refused

} // namespace card
