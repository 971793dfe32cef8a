// The inner loops of the CPU operators, behind one table of functions per instruction level.
#pragma once

#include <cstdint>

#include "common/activation.h"
#include "common/large_angle.h"
#include "common/mlp_layout.h"

namespace llr {

// One row of the Jacobian (of one sample and one output), as products of two signals per layer.
struct RowSignals {
  const double* const* inputs;  // inputs[l]: the inputs of layer l, layout.in(l) numbers
  const double* const* deltas;  // deltas[l]: d output / d preactivation of layer l; null for the last
                                // layer, where it is the unit vector of `output`
  int64_t output;
};

template <typename T>
struct Kernels {
  // Appends the strips' columns of one row to a writer opened by `open`.
  void (*row)(void* writer, const MlpLayout& layout, const Strip* strips, int64_t count,
              const RowSignals& signals);
  void (*open)(void* writer, T* destination, bool streaming);
  void (*close)(void* writer);
};

// Storage for a writer of any instruction level: the staging buffer and a little state.
constexpr int64_t writer_bytes = 16384 + 256;

struct MathKernels {
  // values[i], slopes[i] = sigma(values[i]), sigma'(values[i])
  void (*activate)(Activation, double* values, double* slopes, int64_t count);
  // c (m, n; rows ldc apart) += a (m, k; rows lda apart) b (k, n; rows ldb apart)
  void (*multiply_add)(double* c, int64_t ldc, const double* a, int64_t lda, const double* b,
                       int64_t ldb, int64_t m, int64_t n, int64_t k);
  // c[i] *= d[i]
  void (*scale)(double* c, const double* d, int64_t count);
  bool (*all_finite_double)(const double*, int64_t count);
  bool (*all_finite_float)(const float*, int64_t count);
  // The largest magnitude of `count` numbers; NaN or infinity if there is one among them.
  double (*largest_double)(const double*, int64_t count);
  float (*largest_float)(const float*, int64_t count);
};

template <typename T>
const Kernels<T>& row_kernels();
const MathKernels& math_kernels();

}  // namespace llr
