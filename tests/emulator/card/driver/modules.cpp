// Modules and kernels. An emulated cubin is a shared library with a trailer: for which architecture it was compiled
// and a checksum, so that a spoilt cache file is refused as the driver refuses it.
#include "driver.h"
#include "../image.h"
#include <atomic>
#include <cstring>
#include <dlfcn.h>
#include <elf.h>
#include <fstream>
#include <iterator>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

namespace card {

/// Copies memory whose length nobody told us; false where it ends early.
static bool read_image(void* to, const void* from, size_t bytes) {
    iovec local = {to, bytes}, remote = {const_cast<void*>(from), bytes};
    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == ssize_t(bytes);
}

static CUresult load(Module** module, const void* image) {
    Elf64_Ehdr head;
    CHECK(read_image(&head, image, sizeof head), CUDA_ERROR_INVALID_IMAGE);
    CHECK(memcmp(head.e_ident, ELFMAG, SELFMAG) == 0, CUDA_ERROR_INVALID_IMAGE);
    CHECK(head.e_shoff < 256 << 20, CUDA_ERROR_INVALID_IMAGE);
    const size_t bytes = head.e_shoff + size_t(head.e_shnum) * head.e_shentsize;
    std::vector<char> library(bytes + sizeof(Trailer));
    CHECK(read_image(library.data(), image, library.size()), CUDA_ERROR_INVALID_IMAGE);
    Trailer trailer;
    memcpy(&trailer, library.data() + bytes, sizeof trailer);
    CHECK(trailer.magic == Trailer::MAGIC && trailer.checksum == checksum(library.data(), bytes), CUDA_ERROR_INVALID_IMAGE);
    const auto& card = settings();
    // A cubin runs on its own major version, from its own minor version on.
    const int major = trailer.architecture / 10, minor = trailer.architecture % 10;
    CHECK(major == card.capability_major && minor <= card.capability_minor, CUDA_ERROR_NO_BINARY_FOR_GPU);

    const int file = memfd_create("flotilla-emulated-module", MFD_CLOEXEC);
    CHECK(file >= 0, CUDA_ERROR_OUT_OF_MEMORY);
    for (size_t at = 0; at < bytes;) {
        const ssize_t written = write(file, library.data() + at, bytes - at);
        CHECK(written > 0, CUDA_ERROR_OUT_OF_MEMORY);
        at += size_t(written);
    }
    // The loader takes two libraries of one name for one library, and file numbers come again: each path is spelt
    // in a way of its own.
    static std::atomic<unsigned> loaded{0};
    const unsigned serial = loaded++;
    std::string path = "/proc/self/fd/";
    for (int bit = 0; bit < 32; bit++) path += serial >> bit & 1 ? "./" : "/";
    path += std::to_string(file);
    void* opened = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    close(file);
    if (opened == nullptr) {
        fprintf(stderr, "emulated card: a module cannot be loaded: %s\n", dlerror());
        return CUDA_ERROR_INVALID_IMAGE;
    }
    auto* table = static_cast<const ModuleTable*>(dlsym(opened, "flotilla_emulated_module"));
    CHECK(table != nullptr, CUDA_ERROR_INVALID_IMAGE);
    *module = new Module;
    (*module)->library = std::shared_ptr<void>(opened, [](void* library) { dlclose(library); });
    (*module)->table = table;
    return CUDA_SUCCESS;
}

} // namespace card

using namespace card;

CARD_API CUresult cuModuleLoadData(Module** module, const void* image) {
    CHECK_CONTEXT();
    CHECK(image != nullptr, CUDA_ERROR_INVALID_VALUE);
    return load(module, image);
}
CARD_API CUresult cuModuleLoadDataEx(Module** module, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(module, image);
}
CARD_API CUresult cuModuleLoad(Module** module, const char* path) {
    CHECK_CONTEXT();
    std::ifstream file(path, std::ios::binary);
    CHECK(file, CUDA_ERROR_FILE_NOT_FOUND);
    const std::string image{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    return load(module, image.data());
}
CARD_API CUresult cuModuleUnload(Module* module) {
    CHECK(valid(module), CUDA_ERROR_INVALID_HANDLE);
    module->magic = 0;
    delete module; // launches under way hold the library
    return CUDA_SUCCESS;
}
CARD_API CUresult cuModuleGetFunction(Function** function, Module* module, const char* name) {
    CHECK(valid(module), CUDA_ERROR_INVALID_HANDLE);
    for (unsigned i = 0; i < module->table->kernel_count; i++) {
        const KernelEntry* entry = module->table->kernels + i;
        if (strcmp(entry->name, name) != 0) continue;
        auto made = std::make_unique<Function>();
        made->library = module->library;
        made->table = module->table;
        made->entry = entry;
        *function = made.get();
        module->functions.push_back(std::move(made));
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
}
CARD_API CUresult cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, Module*, const char*) { return CUDA_ERROR_NOT_FOUND; }

CARD_API CUresult cuFuncGetAttribute(int* value, int attribute, Function* function) {
    CHECK(valid(function), CUDA_ERROR_INVALID_HANDLE);
    switch (attribute) {
    case 0: *value = int(function->entry->threads_max); break;
    case 1: case 2: case 3: *value = 0; break; // static shared, constant and local memory: not known here
    case 4: *value = 32; break;                // registers: not known here
    case 5: case 6: *value = settings().capability_major * 10 + settings().capability_minor; break;
    case 7: *value = 0; break;
    case 8: *value = int(function->dynamic_shared_max); break;
    case 9: *value = -1; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}
CARD_API CUresult cuFuncSetAttribute(Function* function, int attribute, int value) {
    CHECK(valid(function), CUDA_ERROR_INVALID_HANDLE);
    if (attribute == 9) return CUDA_SUCCESS;
    CHECK(attribute == 8, CUDA_ERROR_INVALID_VALUE);
    CHECK(value >= 0 && unsigned(value) <= settings().shared_optin_max, CUDA_ERROR_INVALID_VALUE);
    function->dynamic_shared_max = unsigned(value);
    return CUDA_SUCCESS;
}
CARD_API CUresult cuFuncSetCacheConfig(Function*, int) { return CUDA_SUCCESS; }
