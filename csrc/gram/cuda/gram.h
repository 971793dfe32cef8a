// Launchers of the kernels that compute Gram matrices of Jacobians.
#pragma once

#include <cstdint>

#if defined(LLR_EMULATE)
#include "emulation.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace llr::cuda {

// One layer's contribution to K: its derivatives are sums over positions t of products of two signals,
//   d row i / d weight = sum over t of delta(i, t) a(i, t)',  d row i / d bias = sum over t of delta(i, t).
struct GramLayer {
  const double* delta;   // (rows, positions, outputs); null where row i's is the unit vector i % sharing
  const double* a;       // (rows / sharing, positions, inputs)
  int64_t delta_stride;  // from parameter point to parameter point
  int64_t a_stride;
  int positions;
  int outputs;
  int inputs;
  int sharing;  // consecutive rows with the same a: the outputs of a sample
  bool weight;  // which of the two tensors have columns
  bool bias;
};

// high + low (points, rows, rows) = the layer's Gram matrices, or += with `add`; low may be null, for plain
// double arithmetic. The part above the diagonal is written only with `last`, for the last layer.
cudaError_t add_layer(double* high, double* low, int64_t points, int64_t rows, const GramLayer& layer, bool add,
                      bool last, cudaStream_t stream);

}  // namespace llr::cuda
