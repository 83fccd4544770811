// The emulated NCCL: ranks are threads or processes of one host that meet in shared memory. Operations run on the
// stream's own thread, so a rank that never comes leaves the others' streams unfinished until they abort, as on a
// card: no error appears by itself. A communicator that does not block hands them to the stream on a thread of its own, and
// is in progress meanwhile: at the first operation of its length, until all ranks have called, as NCCL is that connects
// an algorithm at its first use.
//
// Deliberately not: several hosts, premultiplied sums, averages, splitting and shrinking, windows, and NCCL's order
// of sums (a ring's or tree's); here sums are in f32 in rank order, rounded once.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

enum ncclResult_t : int {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
};
enum ncclDataType_t : int {
    ncclInt8 = 0,
    ncclUint8 = 1,
    ncclInt32 = 2,
    ncclUint32 = 3,
    ncclInt64 = 4,
    ncclUint64 = 5,
    ncclFloat16 = 6,
    ncclFloat32 = 7,
    ncclFloat64 = 8,
    ncclBfloat16 = 9,
};
enum ncclRedOp_t : int { ncclSum = 0, ncclProd = 1, ncclMax = 2, ncclMin = 3 };
struct ncclUniqueId {
    char internal[128];
};
/// The start of ncclConfig_t, which has only grown at its end.
struct ncclConfig_t {
    size_t size;
    unsigned magic, version;
    int blocking;
};

namespace nccl {

constexpr int RANKS_MAX = 64, LENGTHS = 65;
constexpr size_t CHUNK_BYTES = 64 << 10, MAILBOX_BYTES = 16 << 10;

enum class Kind : int { AllReduce, AllGather, Broadcast, Send, Recv };

/// What a rank says it is doing, so that ranks which do different things find out.
struct Intent {
    int kind, type, operation, root;
    uint64_t count;
};

/// One direction between two ranks: a ring of bytes.
struct Mailbox {
    alignas(64) std::atomic<uint64_t> written;
    alignas(64) std::atomic<uint64_t> read;
    char data[MAILBOX_BYTES];
};

struct RankState {
    alignas(64) std::atomic<uint64_t> phase; // how many meetings this rank has come to
    std::atomic<int> device_plus_1;          // 0: nobody has joined as this rank
    Intent intent;
    char chunk[CHUNK_BYTES];
};

/// The shared memory. Fresh shared memory is zero, and zero is the beginning of everything in it.
struct Shared {
    std::atomic<int> rank_count, joined;
    std::atomic<int> connected[LENGTHS]; // how many ranks have called an operation of bytes of so many bits
    RankState ranks[RANKS_MAX]; // the mailboxes [from][to] follow the last rank that there is
};

/// A rank of a communicator, alive as long as its handle or an operation that was queued with it.
struct Comm {
    int rank, count, device;
    bool blocking = true;
    bool connected[LENGTHS] = {}; // see Shared
    std::string name;             // of the shared memory
    Shared* shared = nullptr;
    size_t shared_bytes = 0;
    uint64_t phase = 0;
    std::atomic<bool> aborted{false}, finalized{false};
    std::atomic<int> state{ncclInProgress};
    std::atomic<int> recorded{0}; // operations in graphs that are alive
    std::atomic<int> calls{0};    // that are in progress
    bool has_failed() const {
        const int now = state;
        return now != ncclSuccess && now != ncclInProgress;
    }
    ~Comm();
    Mailbox& mailbox(int from, int to) const;
    /// Comes to the next meeting and waits for all; false: aborted meanwhile.
    bool meet();
};

/// Opens the shared memory and waits for the other ranks; the outcome goes to `state` as well.
ncclResult_t join(Comm& comm);
/// One turn of a waiting loop: first fast, then kind to the other processes.
void pause(unsigned turn);

struct Operation {
    Kind kind;
    const void* from;
    void* to;
    size_t count; // elements
    ncclDataType_t type;
    int operation, peer; // peer: the root of a broadcast
};
size_t bytes_of(ncclDataType_t type);
/// Says that this rank has come to a collective of this length, and, if it does not block, waits for all; false: aborted meanwhile.
bool connect(Comm& comm, const Operation& operation);
/// Does the operations of one group on one stream: collectives in order, then all sends and receives at once.
void run(Comm& comm, const std::vector<Operation>& operations);

ncclResult_t failed(ncclResult_t code, const std::string& text);

} // namespace nccl
