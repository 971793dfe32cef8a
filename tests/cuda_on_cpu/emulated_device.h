// Replaces csrc/common/cuda/device.h for the emulation: "CUDA" tensors are on the CPU, and the operators
// belong to torch.ops.llr_emulated.
#pragma once

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstring>
#include <limits>

#include "emulation.h"

#define LLR_CUDA_LIBRARY(m) TORCH_LIBRARY_IMPL(llr_emulated, CPU, m)

namespace llr::cuda {

class OnDevice {
 public:
  explicit OnDevice(const at::Tensor& tensor) {
    TORCH_CHECK(tensor.device().is_cpu(), "the emulation works on CPU tensors");
    ++alive;
  }
  ~OnDevice() { --alive; }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  static inline thread_local int alive = 0;
};

// If this is called before the device is current, it returns another device's stream, which launches refuse.
inline cudaStream_t current_stream() { return OnDevice::alive > 0 ? emulation::stream() : nullptr; }

// The size of the largest tensor that can be allocated; tests set it.
inline int64_t& most_bytes() {
  static int64_t bytes = std::numeric_limits<int64_t>::max();
  return bytes;
}

// Filled with NaN, so that reads of uninitialised memory are detected.
inline at::Tensor empty_on(const at::Tensor& like, at::IntArrayRef sizes, at::ScalarType dtype) {
  const auto options = like.options().dtype(dtype).memory_format(at::MemoryFormat::Contiguous);
  double bytes = static_cast<double>(c10::elementSize(dtype));  // torch refuses sizes that do not fit int64
  for (const int64_t size : sizes) bytes *= static_cast<double>(size);
  TORCH_CHECK_WITH(
      OutOfMemoryError, !(bytes > static_cast<double>(most_bytes())), "emulated CUDA: out of memory: ", bytes, " bytes");
  at::Tensor result = at::empty(sizes, options);
  if (result.nbytes() > 0) memset(result.mutable_data_ptr(), 0xff, result.nbytes());
  return result;
}

}  // namespace llr::cuda
