// How fast a card reads: every word of a buffer is read once and summed, and the sums are compared on the
// host, so that no read can be left out. Four independent reads of 16 bytes a thread are in flight.
#include "intrinsics.cuh"

// from [count] of 16 bytes -> sums [gridDim.x]
extern "C" __global__ void __launch_bounds__(512)
read_sum(const uint4* __restrict__ from, unsigned long long count, unsigned* __restrict__ sums) {
    __shared__ unsigned block_sum;
    if (threadIdx.x == 0) block_sum = 0;
    __syncthreads();

    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned sum = 0;
    for (; at + 3 * stride < count; at += 4 * stride) {
        const uint4 a = from[at], b = from[at + stride], c = from[at + 2 * stride], d = from[at + 3 * stride];
        sum += a.x + a.y + a.z + a.w + b.x + b.y + b.z + b.w;
        sum += c.x + c.y + c.z + c.w + d.x + d.y + d.z + d.w;
    }
    for (; at < count; at += stride) {
        const uint4 a = from[at];
        sum += a.x + a.y + a.z + a.w;
    }

    atomicAdd(&block_sum, sum);
    __syncthreads();
    if (threadIdx.x == 0) sums[blockIdx.x] = block_sum;
}
