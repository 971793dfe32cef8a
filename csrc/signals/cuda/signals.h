// Launchers of the kernels that run between matrix products: activations and their slopes.
#pragma once

#include <cstdint>

#include "common/activation.h"

#if defined(LLR_EMULATE)
#include "emulation.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace llr::cuda {

// Numbers of signals that a launch can have: they are counted in 32 bits.
constexpr int64_t most_signals = (int64_t(1) << 31) - 1;

// values (count): z becomes sigma(z), and slopes sigma'(z).
cudaError_t activate(Activation activation, double* values, double* slopes, int64_t count,
                     cudaStream_t stream);

// deltas (samples, outputs, width) = weight (outputs, width) * slopes (samples, width): how the outputs
// depend on the last hidden layer's preactivations. After every `samples_per_point` samples the next weight
// is used, `stride` numbers further.
cudaError_t first_deltas(double* deltas, const double* weight, int64_t stride, int64_t samples_per_point,
                         const double* slopes, int64_t samples, int64_t outputs, int64_t width,
                         cudaStream_t stream);

// deltas (samples, outputs, width) *= slopes (samples, width)
cudaError_t scale_deltas(double* deltas, const double* slopes, int64_t samples, int64_t outputs, int64_t width,
                         cudaStream_t stream);

}  // namespace llr::cuda
