// The end of an emulated cubin, which the emulated NVRTC writes and the emulated driver checks.
#pragma once
#include <cstddef>
#include <cstdint>

struct Trailer {
    static constexpr uint64_t MAGIC = 0x0042554355414C46ull;
    uint64_t magic;
    uint64_t checksum;
    int architecture; // 80 for sm_80
    int reserved;
};

/// FNV-1a: enough to tell a spoilt file.
inline uint64_t checksum(const void* data, size_t bytes, uint64_t hash = 0xCBF29CE484222325ull) {
    auto* at = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ at[i]) * 0x100000001B3ull;
    return hash;
}
