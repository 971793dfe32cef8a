// The subset of CUDA C++ that the kernels use, in one dimension. It is small, so that the same headers also
// run on the host, under sanitizers: tests/cuda_on_cpu replaces the definitions here by an emulation.
//
// Rules for kernels that can be emulated: shared memory through Shared only; stores to results through
// store_vector and store_scalar; full masks and warp-uniform control flow around shuffles, one warp operation
// per source line; no return before a barrier unless the whole block returns; no fences, flags or atomics on
// floats; blocks are multiples of 32 threads.
#pragma once

#include <cstdint>

#if defined(LLR_EMULATE)
#include "emulation.h"
#define LLR_PARAMETER const
#else

#include <cuda_runtime.h>

#define LLR_DEVICE __device__ __forceinline__

// A kernel of blocks of `threads` threads, `blocks` of which fit a multiprocessor's registers.
#define LLR_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)

// Before a kernel's structured parameter: it may be indexed without a copy in local memory.
#define LLR_PARAMETER const __grid_constant__

// kernel<<<...>>>(...); a template instance goes in parentheses.
#define LLR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

namespace llr::cuda {

// Allocates parts of the dynamic shared memory, from its start. Every thread asks for the same parts in the
// same order.
class Shared {
 public:
  // At a multiple of 16 bytes.
  template <typename T>
  LLR_DEVICE T* part(int count) {
    extern __shared__ double2 llr_shared_memory[];
    T* const p = reinterpret_cast<T*>(reinterpret_cast<char*>(llr_shared_memory) + used_);
    used_ += (count * static_cast<int>(sizeof(T)) + 15) / 16 * 16;
    return p;
  }

 private:
  int used_ = 0;
};

// One store of 16 bytes; p is a multiple of 16 bytes. nvcc would split an assignment into two stores.
LLR_DEVICE void store_vector(double* p, const double (&v)[2]) {
  __stwb(reinterpret_cast<double2*>(p), make_double2(v[0], v[1]));
}
LLR_DEVICE void store_vector(float* p, const float (&v)[4]) {
  __stwb(reinterpret_cast<float4*>(p), make_float4(v[0], v[1], v[2], v[3]));
}

template <typename T>
LLR_DEVICE void store_scalar(T* p, T v) {
  *p = v;
}

}  // namespace llr::cuda

#endif

namespace llr::cuda {

// threadIdx.x, read anew at each use: values computed from it are not kept in registers between uses.
LLR_DEVICE int thread_read_anew() {
#if defined(__CUDA_ARCH__)
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#else
  return static_cast<int>(threadIdx.x);
#endif
}

// Bytes of shared memory that `count` numbers take.
template <typename T>
constexpr int64_t shared_bytes(int64_t count) {
  return (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
}

}  // namespace llr::cuda
