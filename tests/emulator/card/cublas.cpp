// cuBLASLt's double: products y = x Wᵀ of bf16 with an f32 y, and a bias of f32, as work of the emulated driver's
// streams. It knows what the program asks of it and refuses the rest. As the real one loads code when a product is
// first launched, a product is refused while it is recorded if it was not launched before.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <set>
#include <tuple>

#define API extern "C" __attribute__((visibility("default")))

// Of the emulated driver.
extern "C" int flotilla_emulated_enqueue(void* stream, int (*function)(void*, int failed), void* data, void (*drop)(void*));
extern "C" int flotilla_emulated_in_live_memory(const void* address, uint64_t bytes);
extern "C" int cuStreamIsCapturing(void* stream, int* status);

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15 };
constexpr int F32 = 0, BF16 = 14, COMPUTE_F32 = 68, DEFAULT = 1, BIAS = 4;

struct Desc {
    int compute = 0, scale = 0, transpose_a = 0, epilogue = DEFAULT;
    const float* bias = nullptr;
};
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};
struct Preference {
    size_t workspace_bytes = 0;
    uint32_t reductions = 7;
    uint32_t align_bytes[4] = {256, 256, 256, 256};
};
struct Algorithm {
    uint64_t magic, workspace_bytes, align_bytes, rest[5];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};
constexpr uint64_t MAGIC = 0x544c53414c425543;

struct Work {
    const uint16_t *w, *x;
    const float* bias;
    float* y;
    uint64_t t, m, k;
};

float value(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/// From the end: other bits than the program's own kernels have, so that a test sees which of the two it was.
void multiply(const Work& work) {
    for (uint64_t t = 0; t < work.t; ++t)
        for (uint64_t row = 0; row < work.m; ++row) {
            float sum = 0;
            for (uint64_t i = work.k; i-- > 0;) sum += value(work.x[t * work.k + i]) * value(work.w[row * work.k + i]);
            work.y[t * work.m + row] = sum + (work.bias ? work.bias[row] : 0);
        }
}

bool is_known(const Desc& desc, const Layout& w, const Layout& x, const Layout& y) {
    return desc.compute == COMPUTE_F32 && desc.scale == F32 && desc.transpose_a == 1 && w.type == BF16 && x.type == BF16 &&
           y.type == F32 && w.rows == x.rows && y.rows == w.columns && y.columns == x.columns &&
           w.stride == int64_t(w.rows) && x.stride == int64_t(x.rows) && y.stride == int64_t(y.rows) &&
           (desc.epilogue == DEFAULT || desc.epilogue == BIAS);
}

bool is_aligned(const void* at, uint64_t bytes) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; }

template <class T> Status set(T& field, const void* from, size_t bytes) {
    if (bytes != sizeof field) return INVALID_VALUE;
    memcpy(&field, from, bytes);
    return SUCCESS;
}

/// Whether the product may be launched now: not for the first time while it is recorded.
bool is_loaded(void* stream, const Work& work) {
    static std::mutex lock;
    static auto* loaded = new std::set<std::tuple<uint64_t, uint64_t, uint64_t, bool>>;
    int capturing = 0;
    if (cuStreamIsCapturing(stream, &capturing) != 0) return false;
    const std::tuple key(work.t, work.m, work.k, work.bias != nullptr);
    std::lock_guard guard(lock);
    if (!capturing) loaded->insert(key);
    return loaded->count(key) > 0;
}

} // namespace

API size_t cublasLtGetVersion() { return 120900; }
API const char* cublasLtGetStatusName(int) { return "a status of the emulated cuBLASLt"; }
API int cublasLtCreate(int** handle) {
    *handle = new int(1);
    return SUCCESS;
}
API int cublasLtDestroy(int* handle) {
    delete handle;
    return SUCCESS;
}
API int cublasLtMatmulDescCreate(Desc** desc, int compute, int scale) {
    *desc = new Desc{compute, scale};
    return SUCCESS;
}
API int cublasLtMatmulDescSetAttribute(Desc* desc, int attribute, const void* from, size_t bytes) {
    switch (attribute) {
        case 3: return set(desc->transpose_a, from, bytes);
        case 7: return set(desc->epilogue, from, bytes);
        case 8: return set(desc->bias, from, bytes);
        default: return NOT_SUPPORTED;
    }
}
API int cublasLtMatmulDescDestroy(Desc* desc) {
    delete desc;
    return SUCCESS;
}
API int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    *layout = new Layout{type, rows, columns, stride};
    return SUCCESS;
}
API int cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return SUCCESS;
}
API int cublasLtMatmulPreferenceCreate(Preference** preference) {
    *preference = new Preference;
    return SUCCESS;
}
API int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* from, size_t bytes) {
    switch (attribute) {
        case 1: return set(preference->workspace_bytes, from, bytes);
        case 3: return set(preference->reductions, from, bytes);
        case 5: case 6: case 7: case 8: return set(preference->align_bytes[attribute - 5], from, bytes);
        default: return NOT_SUPPORTED;
    }
}
API int cublasLtMatmulPreferenceDestroy(Preference* preference) {
    delete preference;
    return SUCCESS;
}

API int cublasLtMatmulAlgoGetHeuristic(int*, const Desc* desc, const Layout* w, const Layout* x, const Layout* y,
                                       const Layout*, const Preference* preference, int wanted, Heuristic* found, int* count) {
    *count = 0;
    if (wanted < 1 || !is_known(*desc, *w, *x, *y)) return NOT_SUPPORTED;
    // Rows must begin at multiples of 16 bytes, and the bias where the description says.
    const bool bias_fits = desc->epilogue == DEFAULT || (desc->bias && is_aligned(desc->bias, 16));
    if (w->rows % 8 != 0 || y->rows % 4 != 0 || !bias_fits) return SUCCESS;
    const uint32_t align_bytes = *std::max_element(preference->align_bytes, preference->align_bytes + 4);
    *found = {{MAGIC, preference->workspace_bytes, align_bytes, {}}, preference->workspace_bytes, SUCCESS, 1.0f, {}};
    *count = 1;
    return SUCCESS;
}

API int cublasLtMatmul(int*, const Desc* desc, const float* alpha, const uint16_t* w, const Layout* w_layout,
                       const uint16_t* x, const Layout* x_layout, const float* beta, const float*, const Layout*, float* y,
                       const Layout* y_layout, const Algorithm* algorithm, void* workspace, size_t workspace_bytes,
                       void* stream) {
    if (!is_known(*desc, *w_layout, *x_layout, *y_layout) || *alpha != 1 || *beta != 0) return NOT_SUPPORTED;
    if (algorithm->magic != MAGIC || workspace_bytes < algorithm->workspace_bytes) return INVALID_VALUE;
    const uint64_t t = x_layout->columns, m = w_layout->columns, k = w_layout->rows;
    const bool has_bias = desc->epilogue == BIAS;
    const bool live = flotilla_emulated_in_live_memory(w, m * k * 2) && flotilla_emulated_in_live_memory(x, t * k * 2) &&
                      flotilla_emulated_in_live_memory(y, t * m * 4) &&
                      flotilla_emulated_in_live_memory(workspace, workspace_bytes) &&
                      (!has_bias || flotilla_emulated_in_live_memory(desc->bias, m * 4));
    for (const void* at : {(const void*)w, (const void*)x, (const void*)y})
        if (!is_aligned(at, algorithm->align_bytes)) return INVALID_VALUE;
    if (!live || !is_aligned(workspace, 16)) return INVALID_VALUE;
    auto* work = new Work{w, x, has_bias ? desc->bias : nullptr, y, t, m, k};
    if (!is_loaded(stream, *work)) {
        delete work;
        return INTERNAL_ERROR;
    }
    const auto run = [](void* data, int failed) {
        if (!failed) multiply(*static_cast<Work*>(data));
        return 0;
    };
    const int code = flotilla_emulated_enqueue(stream, run, work, [](void* data) { delete static_cast<Work*>(data); });
    return code == 0 ? SUCCESS : EXECUTION_FAILED;
}
