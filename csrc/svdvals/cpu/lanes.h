// Small dense matrices, one per lane of a vector register. As many matrices as a register holds doubles are
// processed at once, with interleaved entries. So every operation of a textbook algorithm is one vector
// instruction, and the result of a matrix does not depend on the other lanes.
#pragma once

#include <cstdint>

namespace llr {

constexpr int most_at_once = 16;

// A matrix anywhere in memory, of floats or doubles.
struct MatrixView {
  const void* data;
  bool single;  // floats
  int64_t row_stride;
  int64_t column_stride;
  int64_t rows;
  double scale;  // a power of two to multiply the entries by
};

struct LaneKernels {
  int lanes;
  int values_at_once;  // matrices that `values` takes
  // Doubles of scratch for matrices of up to `rows` rows.
  int64_t (*scratch)(int64_t rows, int64_t columns);
  // R of A = QR for `count` <= lanes matrices with the same number of columns: results[i] is (columns,
  // columns), row-major, zero below the diagonal (and below the rows, if they are fewer).
  void (*triangles)(const MatrixView* matrices, int count, int64_t columns, double* const* results,
                    double* scratch);
  // The singular values of `count` <= values_at_once matrices with at least as many rows as columns, in
  // descending order. Returns the bits of those that did not converge within `sweeps` sweeps per value.
  unsigned (*values)(const MatrixView* matrices, int count, int64_t columns, int sweeps,
                     double* const* results, double* scratch);
};

const LaneKernels& lane_kernels();

}  // namespace llr
