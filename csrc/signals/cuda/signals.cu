#include "signals.h"

#include <algorithm>

#include "activate.cuh"

namespace llr::cuda {
namespace {

constexpr int threads = 256;

LLR_KERNEL(threads, 4)
activate_kernel(Activation activation, double* values, double* slopes, uint32_t count) {
  for (uint32_t i = blockIdx.x * threads + threadIdx.x; i < count; i += gridDim.x * threads) {
    const Pair p = activate_at(activation, values[i]);
    values[i] = p.value;
    slopes[i] = p.slope;
  }
}

// Without a weight the deltas themselves are scaled.
LLR_KERNEL(threads, 4)
deltas_kernel(double* deltas, const double* weight, int64_t stride, uint32_t samples_per_point,
              const double* slopes, uint32_t outputs, uint32_t width, uint32_t count) {
  for (uint32_t i = blockIdx.x * threads + threadIdx.x; i < count; i += gridDim.x * threads) {
    const uint32_t row = i / width, k = i - row * width;
    const uint32_t sample = row / outputs, j = row - sample * outputs;
    const double back =
        weight == nullptr ? deltas[i] : weight[sample / samples_per_point * stride + j * width + k];
    deltas[i] = back * slopes[sample * width + k];
  }
}

// Limited so that the index after a step of the whole grid still fits 32 bits.
uint32_t blocks_for(int64_t count) {
  return static_cast<uint32_t>(std::clamp<int64_t>((count + threads - 1) / threads, 1, 1 << 20));
}

}  // namespace

cudaError_t activate(Activation activation, double* values, double* slopes, int64_t count,
                     cudaStream_t stream) {
  LLR_LAUNCH(activate_kernel, blocks_for(count), threads, 0, stream, activation, values, slopes,
             static_cast<uint32_t>(count));
  return cudaGetLastError();
}

cudaError_t first_deltas(double* deltas, const double* weight, int64_t stride, int64_t samples_per_point,
                         const double* slopes, int64_t samples, int64_t outputs, int64_t width,
                         cudaStream_t stream) {
  const int64_t count = samples * outputs * width;
  LLR_LAUNCH(deltas_kernel, blocks_for(count), threads, 0, stream, deltas, weight, stride,
             static_cast<uint32_t>(samples_per_point), slopes, static_cast<uint32_t>(outputs),
             static_cast<uint32_t>(width), static_cast<uint32_t>(count));
  return cudaGetLastError();
}

cudaError_t scale_deltas(double* deltas, const double* slopes, int64_t samples, int64_t outputs, int64_t width,
                         cudaStream_t stream) {
  return first_deltas(deltas, nullptr, 0, 1, slopes, samples, outputs, width, stream);
}

}  // namespace llr::cuda
