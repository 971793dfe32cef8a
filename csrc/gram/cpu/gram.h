// Gram matrices of Jacobians, layer by layer.
#pragma once

#include <cstdint>

namespace llr {

// One layer's contribution to K: its derivatives are sums over t of products of two signals,
//   d row i / d weight = sum over t of delta(i, t) a(i, t)',  d row i / d bias = sum over t of delta(i, t).
struct LayerSignals {
  const double* delta;  // (rows, positions, outputs)
  const double* a;      // (rows / sharing, positions, inputs)
  int64_t positions;
  int64_t outputs;
  int64_t inputs;
  int64_t sharing;  // consecutive rows with the same a: the outputs of a sample
  bool weight;      // which of the two tensors have columns
  bool bias;
};

// high + low (rows, rows) += the layer's Gram matrix; low may be null, for plain double arithmetic.
void add_layer(double* high, double* low, int64_t rows, const LayerSignals& layer);

}  // namespace llr
