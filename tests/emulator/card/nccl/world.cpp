// How ranks find each other and wait: shared memory named by the unique id. The name goes away as soon as all have
// joined, so that nothing stays behind when a process dies later.
#include "nccl.h"
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

namespace nccl {

static size_t head_bytes(int ranks) { return offsetof(Shared, ranks) + size_t(ranks) * sizeof(RankState); }

Mailbox& Comm::mailbox(int from, int to) const {
    auto* boxes = reinterpret_cast<Mailbox*>(reinterpret_cast<char*>(shared) + head_bytes(count));
    return boxes[from * count + to];
}

Comm::~Comm() {
    if (shared) munmap(shared, shared_bytes);
}

void pause(unsigned turn) {
    if (turn < 64) return;
    if (turn < 512) sched_yield();
    else usleep(50);
}

bool Comm::meet() {
    phase++;
    shared->ranks[rank].phase.store(phase, std::memory_order_release);
    for (int other = 0; other < count; other++)
        for (unsigned turn = 0; shared->ranks[other].phase.load(std::memory_order_acquire) < phase; turn++) {
            if (aborted) return false;
            pause(turn);
        }
    return !aborted;
}

static ncclResult_t join_now(Comm& comm) {
    comm.shared_bytes = head_bytes(comm.count) + size_t(comm.count) * size_t(comm.count) * sizeof(Mailbox);
    const int file = shm_open(comm.name.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    if (file < 0) return failed(ncclSystemError, "the shared memory " + comm.name + " cannot be opened: " + strerror(errno));
    void* memory = ftruncate(file, off_t(comm.shared_bytes)) == 0
                       ? mmap(nullptr, comm.shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
                       : MAP_FAILED;
    close(file);
    if (memory == MAP_FAILED) return failed(ncclSystemError, std::string("the shared memory cannot be mapped: ") + strerror(errno));
    comm.shared = static_cast<Shared*>(memory);

    int nobody = 0;
    if (!comm.shared->rank_count.compare_exchange_strong(nobody, comm.count) && nobody != comm.count)
        return failed(ncclInvalidUsage, "rank " + std::to_string(comm.rank) + " says " + std::to_string(comm.count) +
                                            " ranks, another said " + std::to_string(nobody));
    nobody = 0;
    if (!comm.shared->ranks[comm.rank].device_plus_1.compare_exchange_strong(nobody, comm.device + 1))
        return failed(ncclInvalidUsage, "rank " + std::to_string(comm.rank) + " has joined already");
    comm.shared->joined++;
    for (unsigned turn = 0; comm.shared->joined < comm.count; turn++) {
        if (comm.aborted) {
            shm_unlink(comm.name.c_str());
            return failed(ncclInternalError, "aborted while ranks were missing");
        }
        pause(turn);
    }
    shm_unlink(comm.name.c_str());

    // As NCCL has it: a card for each rank, unless several on one are asked for.
    const char* several = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    if (several == nullptr || strcmp(several, "1") != 0)
        for (int a = 0; a < comm.count; a++)
            for (int b = 0; b < a; b++)
                if (comm.shared->ranks[a].device_plus_1 == comm.shared->ranks[b].device_plus_1)
                    return failed(ncclInvalidUsage, "Duplicate GPU detected : rank " + std::to_string(b) + " and rank " +
                                                        std::to_string(a) + " both on CUDA device " +
                                                        std::to_string(comm.shared->ranks[a].device_plus_1 - 1));
    return ncclSuccess;
}

bool connect(Comm& comm, const Operation& operation) {
    if (operation.kind == Kind::Send || operation.kind == Kind::Recv) return !comm.aborted;
    int length = 0;
    for (size_t bytes = operation.count * bytes_of(operation.type); bytes > 0; bytes >>= 1) length++;
    if (!comm.connected[length]) comm.shared->connected[length]++;
    comm.connected[length] = true;
    for (unsigned turn = 0; !comm.blocking && !comm.aborted && comm.shared->connected[length] < comm.count; turn++) pause(turn);
    return !comm.aborted;
}

ncclResult_t join(Comm& comm) {
    const ncclResult_t result = join_now(comm);
    comm.state = result;
    return result;
}

} // namespace nccl
