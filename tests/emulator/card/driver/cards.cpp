// Cards and their primary contexts: what there is, what it can do, who uses it. The names and texts of errors.
#include "driver.h"
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>

namespace card {

static uint64_t number_of(const char* name, uint64_t otherwise) {
    const char* value = getenv(name);
    return value && *value ? strtoull(value, nullptr, 10) : otherwise;
}

static Settings read_settings() {
    Settings s;
    s.card_count = int(number_of("FLOTILLA_EMULATED_CARDS", 2));
    s.memory_bytes = number_of("FLOTILLA_EMULATED_MEMORY_BYTES", 2ull << 30);
    s.capability_major = 8;
    s.capability_minor = 0;
    if (const char* capability = getenv("FLOTILLA_EMULATED_CAPABILITY")) {
        s.capability_major = atoi(capability);
        const char* dot = strchr(capability, '.');
        s.capability_minor = dot ? atoi(dot + 1) : 0;
    }
    s.peers = number_of("FLOTILLA_EMULATED_PEERS", 1) != 0;
    s.quiet = number_of("FLOTILLA_EMULATED_QUIET", 0) != 0;
    s.broken_by = getenv("FLOTILLA_EMULATED_BROKEN_BY");
    s.seed = number_of("FLOTILLA_EMULATED_SEED", 1);
    const int capability = s.capability_major * 10 + s.capability_minor;
    s.shared_optin_max = (capability < 80 ? 64 : capability == 80 || capability == 87 ? 163 : capability == 90 || capability == 100 ? 227 : 99) << 10;
    return s;
}
const Settings& settings() {
    static const Settings read = read_settings();
    return read;
}

static bool initialised = false;
static thread_local Context* current = nullptr;

static std::vector<Context*>& contexts() {
    static auto* all = [] {
        auto* made = new std::vector<Context*>;
        for (int i = 0; i < settings().card_count; i++) {
            auto* context = new Context;
            context->ordinal = i;
            context->total_bytes = settings().memory_bytes;
            made->push_back(context);
        }
        return made;
    }();
    return *all;
}

Context* current_context() { return current; }
void set_current_context(Context* context) { current = context; }
Context* context_of(int ordinal) {
    return ordinal >= 0 && ordinal < settings().card_count ? contexts()[size_t(ordinal)] : nullptr;
}

} // namespace card

using namespace card;

#define CHECK_INIT() CHECK(card::initialised, CUDA_ERROR_NOT_INITIALIZED)
#define CHECK_DEVICE(device)                                                                                           \
    CHECK_INIT();                                                                                                      \
    CHECK(context_of(device) != nullptr, CUDA_ERROR_INVALID_DEVICE)

CARD_API CUresult cuInit(unsigned flags) {
    CHECK(flags == 0, CUDA_ERROR_INVALID_VALUE);
    CHECK(settings().card_count > 0, CUDA_ERROR_NO_DEVICE);
    initialised = true;
    install_fault_handler();
    return CUDA_SUCCESS;
}
CARD_API CUresult cuDriverGetVersion(int* version) {
    *version = 12080;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuDeviceGetCount(int* count) {
    CHECK_INIT();
    *count = settings().card_count;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    CHECK_DEVICE(ordinal);
    *device = ordinal;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuDeviceGetName(char* name, int bytes, CUdevice device) {
    CHECK_DEVICE(device);
    CHECK(bytes > 0, CUDA_ERROR_INVALID_VALUE);
    strncpy(name, "Emulated card", size_t(bytes));
    name[bytes - 1] = 0;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice device) {
    CHECK_DEVICE(device);
    *bytes = settings().memory_bytes;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuDeviceGetUuid_v2(unsigned char* uuid, CUdevice device) {
    CHECK_DEVICE(device);
    memcpy(uuid, "flotilla-emulat", 15);
    uuid[15] = static_cast<unsigned char>(device);
    return CUDA_SUCCESS;
}
// The cards are like instances of one that MIG has cut: to this version they are all the same.
CARD_API CUresult cuDeviceGetUuid(unsigned char* uuid, CUdevice device) {
    CHECK_DEVICE(device);
    return cuDeviceGetUuid_v2(uuid, 0);
}
CARD_API CUresult cuDeviceGetPCIBusId(char* id, int bytes, CUdevice device) {
    CHECK_DEVICE(device);
    snprintf(id, size_t(bytes), "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}

CARD_API CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
    CHECK_DEVICE(device);
    switch (attribute) {
    case 1: *value = 1024; break;                                // threads per block
    case 2: case 3: *value = 1024; break;                        // block x, y
    case 4: *value = 64; break;                                  // block z
    case 5: *value = 2147483647; break;                          // grid x
    case 6: case 7: *value = 65535; break;                       // grid y, z
    case 8: *value = 48 << 10; break;                            // shared memory per block
    case 9: *value = 64 << 10; break;                            // constant memory
    case 10: *value = 32; break;                                 // warp
    case 12: case 82: *value = 65536; break;                     // registers per block, per multiprocessor
    case 13: *value = 1000000; break;                            // clock, kHz
    case 16: *value = 4; break;                                  // multiprocessors: few, so that grids of "one per
                                                                 // multiprocessor" stay small
    case 18: *value = 0; break;                                  // integrated
    case 19: case 41: case 31: *value = 1; break;                // maps host memory, unified addresses, concurrent kernels
    case 20: *value = 0; break;                                  // compute mode: default
    case 32: case 35: *value = 0; break;                         // ECC, TCC
    case 33: *value = device + 1; break;                         // PCI bus
    case 34: case 50: *value = 0; break;                         // PCI device, domain
    case 36: *value = 1000000; break;                            // memory clock, kHz
    case 37: *value = 64; break;                                 // bus width, bits
    case 38: *value = 1 << 20; break;                            // L2 bytes
    case 39: *value = 2048; break;                               // threads per multiprocessor
    case 40: *value = 2; break;                                  // copy engines
    case 75: *value = settings().capability_major; break;
    case 76: *value = settings().capability_minor; break;
    case 81: *value = int(settings().shared_optin_max) + 1024; break; // shared memory per multiprocessor
    case 83: case 88: case 89: *value = 0; break;                // managed memory, pageable access, concurrent managed
    case 86: *value = 0; break;                                  // native atomics on host memory
    case 91: *value = 1; break;                                  // a registered host pointer is a device pointer
    case 95: *value = 0; break;                                  // cooperative launch: blocks run one after another
    case 97: *value = int(settings().shared_optin_max); break;
    case 106: *value = 32; break;                                // blocks per multiprocessor
    case 108: case 109: *value = 0; break;                       // persisting L2, access policy window
    case 111: *value = 1024; break;                              // reserved shared memory per block
    case 115: *value = 1; break;                                 // memory pools
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

CARD_API CUresult cuDevicePrimaryCtxRetain(Context** context, CUdevice device) {
    CHECK_DEVICE(device);
    *context = context_of(device);
    std::lock_guard guard((*context)->lock);
    (*context)->retained++;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    CHECK_DEVICE(device);
    Context* context = context_of(device);
    std::lock_guard guard(context->lock);
    CHECK(context->retained > 0, CUDA_ERROR_INVALID_CONTEXT);
    context->retained--;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
    CHECK_DEVICE(device);
    *flags = 0;
    *active = context_of(device)->retained > 0;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned) {
    CHECK_DEVICE(device);
    return CUDA_SUCCESS;
}
CARD_API CUresult cuCtxSetCurrent(Context* context) {
    CHECK_INIT();
    CHECK(context == nullptr || valid(context), CUDA_ERROR_INVALID_CONTEXT);
    current = context;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuCtxGetCurrent(Context** context) {
    CHECK_INIT();
    *context = current;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuCtxGetDevice(CUdevice* device) {
    CHECK_CONTEXT();
    *device = current->ordinal;
    return CUDA_SUCCESS;
}
static thread_local std::vector<Context*> pushed;
CARD_API CUresult cuCtxPushCurrent_v2(Context* context) {
    CHECK(valid(context), CUDA_ERROR_INVALID_CONTEXT);
    pushed.push_back(current);
    current = context;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuCtxPopCurrent_v2(Context** context) {
    CHECK(!pushed.empty(), CUDA_ERROR_INVALID_CONTEXT);
    if (context) *context = current;
    current = pushed.back();
    pushed.pop_back();
    return CUDA_SUCCESS;
}
CARD_API CUresult cuCtxSynchronize() {
    CHECK_CONTEXT();
    CHECK_NO_CAPTURE();
    const CUresult code = context_wait_idle(current);
    pool_release(current);
    return code;
}
CARD_API CUresult cuCtxSetFlags(unsigned) { return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
CARD_API CUresult cuCtxSetLimit(int, size_t) { return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT; }
CARD_API CUresult cuCtxGetLimit(size_t* value, int) {
    CHECK_CONTEXT();
    *value = 1024;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuCtxSetCacheConfig(int) { return CUDA_SUCCESS; }
CARD_API CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    CHECK_CONTEXT();
    *least = 0;
    *greatest = -5;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuDeviceCanAccessPeer(int* can, CUdevice device, CUdevice peer) {
    CHECK_DEVICE(device);
    CHECK(context_of(peer) != nullptr, CUDA_ERROR_INVALID_DEVICE);
    *can = device != peer && settings().peers;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuDeviceGetP2PAttribute(int* value, int, CUdevice device, CUdevice peer) {
    return cuDeviceCanAccessPeer(value, device, peer);
}
CARD_API CUresult cuCtxEnablePeerAccess(Context* peer, unsigned) {
    CHECK_CONTEXT();
    CHECK(valid(peer) && peer != current && settings().peers, CUDA_ERROR_INVALID_DEVICE);
    std::lock_guard guard(current->lock);
    CHECK(!current->peers[peer->ordinal], CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
    current->peers[peer->ordinal] = true;
    return CUDA_SUCCESS;
}
CARD_API CUresult cuCtxDisablePeerAccess(Context* peer) {
    CHECK_CONTEXT();
    CHECK(valid(peer), CUDA_ERROR_INVALID_CONTEXT);
    std::lock_guard guard(current->lock);
    CHECK(current->peers[peer->ordinal], CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
    current->peers[peer->ordinal] = false;
    return CUDA_SUCCESS;
}

struct ErrorText {
    CUresult code;
    const char *name, *text;
};
#define TEXT(name, text) {name, #name, text}
static const ErrorText ERRORS[] = {
    TEXT(CUDA_SUCCESS, "no error"),
    TEXT(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    TEXT(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    TEXT(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    TEXT(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    TEXT(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    TEXT(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    TEXT(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    TEXT(CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"),
    TEXT(CUDA_ERROR_FILE_NOT_FOUND, "file not found"),
    TEXT(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    TEXT(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    TEXT(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    TEXT(CUDA_ERROR_NOT_READY, "device not ready"),
    TEXT(CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
    TEXT(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "too many resources requested for launch"),
    TEXT(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "peer access is already enabled"),
    TEXT(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, "peer access has not been enabled"),
    TEXT(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part or all of the requested memory range is already mapped"),
    TEXT(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "pointer does not correspond to a registered memory region"),
    TEXT(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    TEXT(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "capturing stream has unjoined work"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "dependency created on uncaptured work in another stream"),
    TEXT(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    TEXT(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread"),
    TEXT(CUDA_ERROR_UNKNOWN, "unknown error"),
};
static const ErrorText* error_of(CUresult code) {
    for (const auto& error : ERRORS)
        if (error.code == code) return &error;
    return nullptr;
}
CARD_API CUresult cuGetErrorName(CUresult code, const char** name) {
    const auto* error = error_of(code);
    *name = error ? error->name : nullptr;
    return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CARD_API CUresult cuGetErrorString(CUresult code, const char** text) {
    const auto* error = error_of(code);
    *text = error ? error->text : nullptr;
    return error ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CARD_API CUresult cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
    Dl_info self;
    dladdr(reinterpret_cast<void*>(&cuInit), &self);
    void* library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *function = nullptr;
    for (const char* suffix : {"_v2", "_v4", "_v3", ""})
        if (!*function) *function = dlsym(library, (std::string(name) + suffix).c_str());
    if (status) *status = *function ? 0 : 1;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CARD_API CUresult cuProfilerStart() { return CUDA_SUCCESS; }
CARD_API CUresult cuProfilerStop() { return CUDA_SUCCESS; }
