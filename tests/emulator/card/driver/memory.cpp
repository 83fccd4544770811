// Memory: buffers of a card, pinned host memory, copies and fills. A buffer ends at a page that nobody may touch (as
// near as 16 bytes allow) and begins after one; fresh memory is poison (NaN in every float type). Large buffers cost
// no memory until they are written: the poison is one small file mapped again and again.
#include "driver.h"
#include <algorithm>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

namespace card {

constexpr uint64_t PAGE = 4096, POISON_FILE_BYTES = 2 << 20;
constexpr int POISON = 0xFF;

struct Buffer {
    uint64_t bytes;
    char* mapping;
    uint64_t mapping_bytes;
    Context* context; // null: host
    bool registered;  // host memory that is the caller's own
};

static std::mutex& buffers_lock() {
    static auto* lock = new std::mutex;
    return *lock;
}
static std::map<CUdeviceptr, Buffer>& buffers() {
    static auto* all = new std::map<CUdeviceptr, Buffer>;
    return *all;
}

static int poison_file() {
    static const int file = [] {
        const int made = memfd_create("flotilla-emulated-poison", MFD_CLOEXEC);
        if (made < 0 || ftruncate(made, POISON_FILE_BYTES) != 0) return -1;
        void* view = mmap(nullptr, POISON_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, made, 0);
        if (view == MAP_FAILED) return -1;
        memset(view, POISON, POISON_FILE_BYTES);
        munmap(view, POISON_FILE_BYTES);
        return made;
    }();
    return file;
}

/// The address of a fresh buffer, or 0.
static CUdeviceptr take(uint64_t bytes, Context* context) {
    const uint64_t rounded = (bytes + 15) / 16 * 16, pages = (rounded + PAGE - 1) / PAGE * PAGE;
    auto* mapping = static_cast<char*>(mmap(nullptr, pages + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (mapping == MAP_FAILED) return 0;
    char* start = mapping + PAGE;
    if (pages <= POISON_FILE_BYTES / 4 || poison_file() < 0) {
        mprotect(start, pages, PROT_READ | PROT_WRITE);
        memset(start, POISON, pages);
    } else {
        for (uint64_t at = 0; at < pages; at += POISON_FILE_BYTES) {
            const uint64_t part = std::min(POISON_FILE_BYTES, pages - at);
            void* mapped = mmap(start + at, part, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, poison_file(), 0);
            if (mapped == MAP_FAILED) {
                munmap(mapping, pages + 2 * PAGE);
                return 0;
            }
        }
    }
    const auto address = reinterpret_cast<CUdeviceptr>(start + pages - rounded);
    std::lock_guard guard(buffers_lock());
    buffers()[address] = {bytes, mapping, pages + 2 * PAGE, context, false};
    return address;
}

static bool give_back(CUdeviceptr address, bool host, bool to_pool = false) {
    Buffer buffer;
    {
        std::lock_guard guard(buffers_lock());
        auto found = buffers().find(address);
        if (found == buffers().end() || (found->second.context == nullptr) != host || found->second.registered) return false;
        buffer = found->second;
        buffers().erase(found);
    }
    munmap(buffer.mapping, buffer.mapping_bytes);
    if (buffer.context) {
        std::lock_guard guard(buffer.context->lock);
        buffer.context->used_bytes -= buffer.bytes;
        if (to_pool) buffer.context->pooled_bytes += buffer.bytes;
    }
    return true;
}

void pool_release(Context* context) {
    std::lock_guard guard(context->lock);
    context->pooled_bytes = 0;
}

/// The buffer that holds all of the range; null: none. The lock is held.
static const std::pair<const CUdeviceptr, Buffer>* holder(CUdeviceptr address, uint64_t bytes) {
    auto after = buffers().upper_bound(address);
    if (after == buffers().begin()) return nullptr;
    const auto& found = *std::prev(after);
    return address + bytes <= found.first + found.second.bytes && address + bytes >= address ? &found : nullptr;
}
bool in_live_memory(CUdeviceptr address, uint64_t bytes) {
    std::lock_guard guard(buffers_lock());
    return bytes == 0 || holder(address, bytes) != nullptr;
}
bool is_pinned(const void* address, uint64_t bytes) {
    std::lock_guard guard(buffers_lock());
    const auto* found = holder(reinterpret_cast<CUdeviceptr>(address), bytes);
    return found != nullptr && found->second.context == nullptr;
}

std::string describe_address(const void* address) {
    const auto at = reinterpret_cast<CUdeviceptr>(address);
    std::lock_guard guard(buffers_lock());
    const std::pair<const CUdeviceptr, Buffer>* nearest = nullptr;
    uint64_t distance = 1 << 20; // further away it is chance
    for (const auto& entry : buffers()) {
        const CUdeviceptr end = entry.first + entry.second.bytes;
        const uint64_t away = at >= end ? at - end : at < entry.first ? entry.first - at : 0;
        if (away < distance) {
            distance = away;
            nearest = &entry;
        }
    }
    char text[200];
    if (nearest == nullptr) snprintf(text, sizeof text, "address %p, near no buffer", address);
    else
        snprintf(text, sizeof text, "address %p, %llu bytes %s of %llu bytes at %#llx", address,
                 static_cast<unsigned long long>(distance),
                 at >= nearest->first ? "past the end of a buffer" : "before a buffer",
                 static_cast<unsigned long long>(nearest->second.bytes), nearest->first);
    return text;
}

static bool reserve(Context* context, uint64_t bytes) {
    std::lock_guard guard(context->lock);
    if (bytes > context->total_bytes - context->used_bytes) return false;
    context->used_bytes += bytes;
    // What the pool has is taken first.
    context->pooled_bytes -= std::min(context->pooled_bytes, bytes);
    return true;
}

static CUresult allocate(CUdeviceptr* address, uint64_t bytes, Context* context) {
    *address = 0;
    if (!reserve(context, bytes)) {
        // Frees that are still queued count as done once their streams are.
        context_wait_idle(context);
        CHECK(reserve(context, bytes), CUDA_ERROR_OUT_OF_MEMORY);
    }
    *address = take(bytes, context);
    if (*address == 0) {
        std::lock_guard guard(context->lock);
        context->used_bytes -= bytes;
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return CUDA_SUCCESS;
}

} // namespace card

using namespace card;

/// For other libraries (NCCL): is this memory that a card may touch?
CARD_API int flotilla_emulated_in_live_memory(const void* address, uint64_t bytes) {
    return in_live_memory(reinterpret_cast<CUdeviceptr>(address), bytes);
}

CARD_API CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
    CHECK_CONTEXT();
    Context* context = current_context();
    std::lock_guard guard(context->lock);
    *free_bytes = context->total_bytes - context->used_bytes - context->pooled_bytes;
    *total_bytes = context->total_bytes;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    CHECK(bytes > 0, CUDA_ERROR_INVALID_VALUE);
    return allocate(address, bytes, current_context());
}
CARD_API CUresult cuMemFree_v2(CUdeviceptr address) {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    if (address == 0) return CUDA_SUCCESS;
    context_wait_idle(current_context());
    return give_back(address, false) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
// Inside a capture the real driver makes nodes of these two; a step that allocates is a mistake here, so: refused.
CARD_API CUresult cuMemAllocAsync(CUdeviceptr* address, size_t bytes, Stream* handle) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    if (stream->capture) {
        stream->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (bytes == 0) { // as the driver: success and a null pointer
        *address = 0;
        return CUDA_SUCCESS;
    }
    return allocate(address, bytes, stream->context);
}
CARD_API CUresult cuMemFreeAsync(CUdeviceptr address, Stream* handle) {
    CHECK_CONTEXT();
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    if (stream->capture) {
        stream->capture->invalid = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (address == 0) return CUDA_SUCCESS;
    CHECK(in_live_memory(address, 1), CUDA_ERROR_INVALID_VALUE);
    return enqueue(stream, NodeKind::Empty, [address](Stream&, bool) {
        return give_back(address, false, true) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

CARD_API CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    CHECK(bytes > 0, CUDA_ERROR_INVALID_VALUE);
    const CUdeviceptr taken = take(bytes, nullptr);
    *address = reinterpret_cast<void*>(taken);
    return taken ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CARD_API CUresult cuMemAllocHost_v2(void** address, size_t bytes) { return cuMemHostAlloc(address, bytes, 0); }
CARD_API CUresult cuMemFreeHost(void* address) {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    context_wait_idle(current_context());
    return give_back(reinterpret_cast<CUdeviceptr>(address), true) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CARD_API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* host, unsigned) {
    CHECK_CONTEXT();
    CHECK(is_pinned(host, 1), CUDA_ERROR_INVALID_VALUE);
    *device = reinterpret_cast<CUdeviceptr>(host);
    return CUDA_SUCCESS;
}
CARD_API CUresult cuMemHostGetFlags(unsigned* flags, void* host) {
    CHECK(is_pinned(host, 1), CUDA_ERROR_INVALID_VALUE);
    *flags = 2; // mapped, as all pinned memory is with unified addresses
    return CUDA_SUCCESS;
}
CARD_API CUresult cuMemHostRegister_v2(void* address, size_t bytes, unsigned) {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    CHECK(address != nullptr && bytes > 0, CUDA_ERROR_INVALID_VALUE);
    std::lock_guard guard(buffers_lock());
    const auto at = reinterpret_cast<CUdeviceptr>(address);
    const auto next = buffers().lower_bound(at);
    CHECK(next == buffers().end() || next->first >= at + bytes, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    CHECK(holder(at, 1) == nullptr, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    buffers()[at] = {bytes, nullptr, 0, nullptr, true};
    return CUDA_SUCCESS;
}
CARD_API CUresult cuMemHostUnregister(void* address) {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    context_wait_idle(current_context());
    std::lock_guard guard(buffers_lock());
    const auto found = buffers().find(reinterpret_cast<CUdeviceptr>(address));
    CHECK(found != buffers().end() && found->second.registered, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    buffers().erase(found);
    return CUDA_SUCCESS;
}
CARD_API CUresult cuPointerGetAttribute(void* value, int attribute, CUdeviceptr address) {
    std::lock_guard guard(buffers_lock());
    const auto* found = holder(address, 1);
    CHECK(found != nullptr, CUDA_ERROR_INVALID_VALUE);
    switch (attribute) {
    case 1: *static_cast<Context**>(value) = found->second.context; break;
    case 2: *static_cast<unsigned*>(value) = found->second.context ? 2 : 1; break; // device, host
    case 3: case 4: *static_cast<CUdeviceptr*>(value) = address; break;
    case 9: *static_cast<int*>(value) = found->second.context ? found->second.context->ordinal : 0; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

static Work copying(void* to, const void* from, size_t bytes) {
    return [=](Stream&, bool failed) {
        if (!failed) memmove(to, from, bytes);
        return CUDA_SUCCESS;
    };
}
static void* at(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

// Pinned host memory is read and written when the copy happens; pageable memory before the call returns, as the
// driver stages it. In a graph either is read when the graph runs.
CARD_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, Stream* handle) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    CHECK(in_live_memory(to, bytes), CUDA_ERROR_INVALID_VALUE);
    if (bytes == 0) return CUDA_SUCCESS;
    if (stream->capture || is_pinned(from, bytes)) return enqueue(stream, NodeKind::Memcpy, copying(at(to), from, bytes));
    auto staged = std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    return enqueue(stream, NodeKind::Memcpy, [=](Stream&, bool failed) {
        if (!failed) memcpy(at(to), staged->data(), bytes);
        return CUDA_SUCCESS;
    });
}
CARD_API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, Stream* handle) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    CHECK(in_live_memory(from, bytes), CUDA_ERROR_INVALID_VALUE);
    if (bytes == 0) return CUDA_SUCCESS;
    if (stream->capture || is_pinned(to, bytes)) return enqueue(stream, NodeKind::Memcpy, copying(to, at(from), bytes));
    {
        std::lock_guard guard(stream->lock);
        stream->pageable_reads++;
    }
    return run_now(stream, copying(to, at(from), bytes));
}
CARD_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, Stream* handle) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    CHECK(in_live_memory(to, bytes) && in_live_memory(from, bytes), CUDA_ERROR_INVALID_VALUE);
    return bytes ? enqueue(stream, NodeKind::Memcpy, copying(at(to), at(from), bytes)) : CUDA_SUCCESS;
}
CARD_API CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, Stream* stream) {
    const bool device_to = in_live_memory(to, bytes) && !is_pinned(at(to), bytes);
    const bool device_from = in_live_memory(from, bytes) && !is_pinned(at(from), bytes);
    if (device_to && device_from) return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
    if (device_to) return cuMemcpyHtoDAsync_v2(to, at(from), bytes, stream);
    return cuMemcpyDtoHAsync_v2(at(to), from, bytes, stream);
}
CARD_API CUresult cuMemcpyPeerAsync(CUdeviceptr to, Context*, CUdeviceptr from, Context*, size_t bytes, Stream* stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}
CARD_API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    CHECK(in_live_memory(to, bytes), CUDA_ERROR_INVALID_VALUE);
    return run_now(stream_of(nullptr), copying(at(to), from, bytes));
}
CARD_API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    CHECK(in_live_memory(from, bytes), CUDA_ERROR_INVALID_VALUE);
    return run_now(stream_of(nullptr), copying(to, at(from), bytes));
}
CARD_API CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}

template <class T> static CUresult fill(CUdeviceptr to, T value, size_t count, Stream* handle) {
    Stream* stream = stream_of(handle);
    CHECK(stream != nullptr, CUDA_ERROR_INVALID_HANDLE);
    CHECK(in_live_memory(to, count * sizeof(T)), CUDA_ERROR_INVALID_VALUE);
    CHECK(to % sizeof(T) == 0, CUDA_ERROR_INVALID_VALUE);
    if (count == 0) return CUDA_SUCCESS;
    return enqueue(stream, NodeKind::Memset, [=](Stream&, bool failed) {
        if (!failed) std::fill_n(reinterpret_cast<T*>(to), count, value);
        return CUDA_SUCCESS;
    });
}
CARD_API CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, Stream* stream) { return fill(to, value, count, stream); }
CARD_API CUresult cuMemsetD16Async(CUdeviceptr to, unsigned short value, size_t count, Stream* stream) { return fill(to, value, count, stream); }
CARD_API CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, Stream* stream) { return fill(to, value, count, stream); }
CARD_API CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t count) {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    return fill(to, value, count, nullptr);
}
CARD_API CUresult cuMemsetD32_v2(CUdeviceptr to, unsigned value, size_t count) {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    return fill(to, value, count, nullptr);
}

// The default pool is all there is: its handle is the context.
CARD_API CUresult cuDeviceGetDefaultMemPool(Context** pool, CUdevice device) {
    *pool = context_of(device);
    return *pool ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CARD_API CUresult cuDeviceGetMemPool(Context** pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }
CARD_API CUresult cuMemPoolSetAttribute(Context* pool, int, void*) { return valid(pool) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CARD_API CUresult cuMemPoolTrimTo(Context* pool, size_t) { return valid(pool) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
CARD_API CUresult cuMemPoolGetAttribute(Context* pool, int attribute, uint64_t* value) {
    CHECK(valid(pool), CUDA_ERROR_INVALID_VALUE);
    std::lock_guard guard(pool->lock);
    *value = attribute >= 5 ? pool->used_bytes : 0;
    return CUDA_SUCCESS;
}
