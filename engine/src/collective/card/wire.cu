// Values on their way through NCCL as bf16: rounded before the sum, widened after it.
#include "intrinsics.cuh"

// y: f32 [n] -> wire: bf16 [n]
extern "C" __global__ void __launch_bounds__(256) to_wire(const float* __restrict__ y, unsigned n, bf16* __restrict__ wire) {
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) wire[i] = to_bf16(y[i]);
}

// wire: bf16 [n] -> y: f32 [n]
extern "C" __global__ void __launch_bounds__(256) from_wire(const bf16* __restrict__ wire, unsigned n, float* __restrict__ y) {
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) y[i] = to_float(wire[i]);
}
