// Host-side helpers for the device that an operator works on: streams, memory, errors.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

#if defined(LLR_EMULATE)
#include "emulated_device.h"
#else

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

// Registers an operator's CUDA kernels: LLR_CUDA_LIBRARY(m) { m.impl("name", &function); }
#define LLR_CUDA_LIBRARY(m) TORCH_LIBRARY_IMPL(llr, CUDA, m)

namespace llr::cuda {

// Makes the tensor's device the current one as long as the object lives. For a tensor that is not on a GPU it
// does nothing: the check of the arguments refuses that tensor.
class OnDevice {
 public:
  explicit OnDevice(const at::Tensor& tensor) {
    if (tensor.is_cuda()) guard_.set_device(tensor.device());
  }

 private:
  c10::cuda::OptionalCUDAGuard guard_;
};

inline cudaStream_t current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// Uninitialised memory on the device of `like`.
inline at::Tensor empty_on(const at::Tensor& like, at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::empty(sizes, like.options().dtype(dtype).memory_format(at::MemoryFormat::Contiguous));
}

}  // namespace llr::cuda

#endif

namespace llr::cuda {

// Checks what a launcher returned; throws with the operator's name and CUDA's message.
inline void check(cudaError_t error, const char* op) {
  TORCH_CHECK(error == cudaSuccess, op, ": CUDA error: ", cudaGetErrorString(error));
}

}  // namespace llr::cuda
