// The operations themselves, on the stream's thread. A collective goes chunk by chunk: every rank lays its chunk
// down, all meet, every rank reads all of them, all meet again.
#include "nccl.h"
#include <algorithm>
#include <cstring>
// Last: its keywords are macros that the standard library's headers would not survive.
#include "../arithmetic.h"

namespace nccl {

size_t bytes_of(ncclDataType_t type) {
    switch (type) {
    case ncclInt8: case ncclUint8: return 1;
    case ncclFloat16: case ncclBfloat16: return 2;
    case ncclInt32: case ncclUint32: case ncclFloat32: return 4;
    case ncclInt64: case ncclUint64: case ncclFloat64: return 8;
    }
    return 0;
}

template <class T> static T fold(T a, T b, int operation) {
    switch (operation) {
    case ncclProd: return T(a * b);
    case ncclMax: return b > a ? b : a;
    case ncclMin: return b < a ? b : a;
    default: return T(a + b);
    }
}

struct Bits16 {
    unsigned short bits;
};

/// The elements of all ranks' chunks, folded in rank order; `wide` and `narrow` convert to where sums are made and back.
template <class T, class Wide, class Narrow>
static void fold_chunks(const Comm& comm, void* to, size_t count, int operation, Wide wide, Narrow narrow) {
    for (size_t i = 0; i < count; i++) {
        T element;
        memcpy(&element, comm.shared->ranks[0].chunk + i * sizeof(T), sizeof(T));
        auto sum = wide(element);
        for (int rank = 1; rank < comm.count; rank++) {
            memcpy(&element, comm.shared->ranks[rank].chunk + i * sizeof(T), sizeof(T));
            sum = fold(sum, wide(element), operation);
        }
        const T result = narrow(sum);
        memcpy(static_cast<char*>(to) + i * sizeof(T), &result, sizeof(T));
    }
}
template <class T> static void fold_plain(const Comm& comm, void* to, size_t count, int operation) {
    fold_chunks<T>(comm, to, count, operation, [](T v) { return v; }, [](T v) { return v; });
}

static void fold_typed(const Comm& comm, void* to, size_t count, int operation, ncclDataType_t type) {
    using namespace flotilla_emulated;
    switch (type) {
    case ncclInt8: return fold_plain<int8_t>(comm, to, count, operation);
    case ncclUint8: return fold_plain<uint8_t>(comm, to, count, operation);
    case ncclInt32: return fold_plain<int32_t>(comm, to, count, operation);
    case ncclUint32: return fold_plain<uint32_t>(comm, to, count, operation);
    case ncclInt64: return fold_plain<int64_t>(comm, to, count, operation);
    case ncclUint64: return fold_plain<uint64_t>(comm, to, count, operation);
    case ncclFloat32: return fold_plain<float>(comm, to, count, operation);
    case ncclFloat64: return fold_plain<double>(comm, to, count, operation);
    case ncclBfloat16:
        return fold_chunks<Bits16>(
            comm, to, count, operation, [](Bits16 v) { return float_of_bf16(v.bits); },
            [](float v) { return Bits16{static_cast<unsigned short>(bf16_of_float(v))}; });
    case ncclFloat16:
        return fold_chunks<Bits16>(
            comm, to, count, operation, [](Bits16 v) { return float_of_f16(v.bits); },
            [](float v) {
                // Past the largest value it is infinity here: only our own kernels saturate.
                if (v >= 65520.0f || v <= -65520.0f) return Bits16{static_cast<unsigned short>(v > 0 ? 0x7C00 : 0xFC00)};
                return Bits16{static_cast<unsigned short>(f16_of_float_saturating(v))};
            });
    }
}

/// Whether all ranks came for the same thing.
static bool same_intent(Comm& comm, const Operation& operation) {
    const Intent intent = {int(operation.kind), operation.type, operation.operation, operation.peer, operation.count};
    comm.shared->ranks[comm.rank].intent = intent;
    if (!comm.meet()) return false;
    bool same = true;
    for (int rank = 0; rank < comm.count; rank++) same = same && memcmp(&comm.shared->ranks[rank].intent, &intent, sizeof intent) == 0;
    if (!comm.meet()) return false;
    if (!same) comm.state = failed(ncclInvalidUsage, "rank " + std::to_string(comm.rank) + ": the ranks do not do the same (kind, count, type, operation or root)");
    return same;
}

static void collective(Comm& comm, const Operation& operation) {
    if (!same_intent(comm, operation)) return;
    const size_t element = bytes_of(operation.type), total = operation.count * element;
    char* own = comm.shared->ranks[comm.rank].chunk;
    for (size_t at = 0; at < total; at += CHUNK_BYTES) {
        const size_t part = std::min(CHUNK_BYTES, total - at);
        if (operation.kind != Kind::Broadcast || comm.rank == operation.peer)
            memcpy(own, static_cast<const char*>(operation.from) + at, part);
        if (!comm.meet()) return;
        char* to = static_cast<char*>(operation.to) + at;
        switch (operation.kind) {
        case Kind::AllReduce: fold_typed(comm, to, part / element, operation.operation, operation.type); break;
        case Kind::AllGather:
            for (int rank = 0; rank < comm.count; rank++) memcpy(to + size_t(rank) * total, comm.shared->ranks[rank].chunk, part);
            break;
        default: memcpy(to, comm.shared->ranks[operation.peer].chunk, part);
        }
        if (!comm.meet()) return;
    }
}

struct Transfer {
    const Operation* operation;
    size_t done, total;
};

/// Moves what can be moved now; whether that was anything.
static bool advance(Comm& comm, Transfer& transfer) {
    const bool sends = transfer.operation->kind == Kind::Send;
    Mailbox& box = sends ? comm.mailbox(comm.rank, transfer.operation->peer) : comm.mailbox(transfer.operation->peer, comm.rank);
    const uint64_t written = box.written.load(std::memory_order_acquire), read = box.read.load(std::memory_order_acquire);
    const uint64_t at = (sends ? written : read) % MAILBOX_BYTES;
    const size_t room = sends ? MAILBOX_BYTES - (written - read) : written - read;
    const size_t part = std::min({room, transfer.total - transfer.done, size_t(MAILBOX_BYTES - at)});
    if (part == 0) return false;
    if (sends) {
        memcpy(box.data + at, static_cast<const char*>(transfer.operation->from) + transfer.done, part);
        box.written.store(written + part, std::memory_order_release);
    } else {
        memcpy(static_cast<char*>(transfer.operation->to) + transfer.done, box.data + at, part);
        box.read.store(read + part, std::memory_order_release);
    }
    transfer.done += part;
    return true;
}

static void transfer_all(Comm& comm, std::vector<Transfer>& transfers) {
    for (unsigned turn = 0; !comm.aborted; turn++) {
        bool unfinished = false, moved = false;
        // Of several with one peer in one direction, the first comes first.
        std::vector<bool> sending(size_t(comm.count)), receiving(size_t(comm.count));
        for (auto& transfer : transfers) {
            if (transfer.done == transfer.total) continue;
            auto& taken = transfer.operation->kind == Kind::Send ? sending : receiving;
            const auto peer = size_t(transfer.operation->peer);
            unfinished = true;
            if (!taken[peer]) moved = advance(comm, transfer) || moved;
            taken[peer] = true;
        }
        if (!unfinished) return;
        if (moved) turn = 0;
        else pause(turn);
    }
}

void run(Comm& comm, const std::vector<Operation>& operations) {
    std::vector<Transfer> transfers;
    for (const auto& operation : operations) {
        if (operation.kind == Kind::Send || operation.kind == Kind::Recv)
            transfers.push_back({&operation, 0, operation.count * bytes_of(operation.type)});
        else if (!comm.aborted && !comm.has_failed()) collective(comm, operation);
    }
    transfer_all(comm, transfers);
}

} // namespace nccl
