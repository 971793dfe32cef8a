// Double-double arithmetic: a number is an unevaluated sum high + low of two doubles, 106 bits together.
#pragma once

#include <cstdint>

namespace llr {

constexpr int64_t tile = 64;  // rows and columns of a piece of a Gram matrix

struct DoubleDoubleKernels {
  // high + low (tile, tile) += rows (m, k; `row_stride` apart) columns' (n, k; `column_stride` apart), m, n
  // <= tile. scratch: product_scratch doubles.
  void (*multiply_add)(double* high, double* low, const double* rows, int64_t row_stride,
                       const double* columns, int64_t column_stride, int64_t m, int64_t n, int64_t k,
                       double* scratch);
  // K (m, n; rows ldk apart) += d * (a + bias), entry by entry, with tiles d and a. The rows and columns of a
  // are repeated: entry (i, j) uses a(row_of[i], column_of[j]). If a is null: K += d * bias.
  void (*accumulate)(double* high, double* low, int64_t ldk, const double* d_high, const double* d_low,
                     const double* a_high, const double* a_low, const int64_t* row_of,
                     const int64_t* column_of, double bias, int64_t m, int64_t n);
  // x(i) = (x(i) - sum over c < k of L(c, i) m(c)) * scale and diagonal(i) -= x(i)^2, for i in [first, last):
  // a step of Cholesky's factorisation. L is stored by columns, `stride` apart, its high and its low parts.
  void (*cholesky_step)(double* x_high, double* x_low, const double* L_high, const double* L_low,
                        int64_t stride, const double* m_high, const double* m_low, int64_t k,
                        double scale_high, double scale_low, double* diagonal_high, double* diagonal_low,
                        int64_t first, int64_t last);
  // 1 / sqrt(high + low)
  void (*inverse_root)(double high, double low, double* root_high, double* root_low);
};

constexpr int64_t depth_at_once = 256;  // terms of a sum for which a tile's operands are packed together
constexpr int64_t product_scratch = tile * depth_at_once;

const DoubleDoubleKernels& double_double_kernels();

}  // namespace llr
