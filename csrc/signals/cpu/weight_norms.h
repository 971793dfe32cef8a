// Norms that bound products with the magnitudes of a weight matrix, without the product.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "error_bound.h"
#include "common/cpu/kernels.h"

namespace llr {

// By the Cauchy-Schwarz inequality, for v, w >= 0:
//   sum_j |W_ij| v_j <= row[i] * norm(column_unit * v),
//   sum_i |W_ij| w_i <= column[j] * norm(row_unit * w).
// If the columns (rows) of W differ much in size, column_unit (row_unit) holds their norms, up to a common
// factor, so that the scale of the neurons does not matter. Otherwise it is 1. All within a factor of 1.01.
struct WeightNorms {
  std::vector<double> row, column, row_unit, column_unit;
};

inline double sum_of_row(double* norm, const double* w, const double* unit, double s, int64_t count) {
  return error_kernels().row_squares(norm, w, unit, s, count);
}
inline double sum_of_row(double* norm, const float* w, const double* unit, double s, int64_t count) {
  return error_kernels().row_squares_float(norm, w, unit, s, count);
}
inline double largest(const double* w, int64_t count) { return math_kernels().largest_double(w, count); }
inline double largest(const float* w, int64_t count) { return math_kernels().largest_float(w, count); }

// The norms of rows and columns of s W. The scale s is such that no square overflows and none that matters
// underflows.
template <typename T>
void plain_norms(WeightNorms& n, const T* w, int64_t out, int64_t in, double s) {
  n.row.resize(out);
  n.column.assign(in, 0.0);
  for (int64_t i = 0; i < out; ++i) n.row[i] = std::sqrt(sum_of_row(n.column.data(), w + i * in, nullptr, s, in));
  for (double& c : n.column) c = std::sqrt(c);
}

inline bool alike(const std::vector<double>& norms) {
  const auto [low, high] = std::minmax_element(norms.begin(), norms.end());
  return *low > 1e-100 && *high < 1e100 && *high <= 16.0 * *low;
}

template <typename T>
WeightNorms weight_norms(const T* w, int64_t out, int64_t in) {
  WeightNorms n;
  plain_norms(n, w, out, in, 1.0);
  if (alike(n.row) && alike(n.column)) {
    n.row_unit.assign(out, 1.0);
    n.column_unit.assign(in, 1.0);
    return n;
  }
  constexpr double tiny = 1e-150;  // squares of smaller numbers may be lost
  int exponent = 0;
  std::frexp(largest(w, out * in), &exponent);
  const double s = std::ldexp(1.0, std::clamp(-exponent, -1000, 1000));
  plain_norms(n, w, out, in, s);
  n.row_unit = n.row;
  n.column_unit = n.column;
  std::vector<double> scratch(in, 0.0), inverse(in), row_inverse(in);
  for (double& r : n.row_unit) r = std::max(r, tiny);
  for (int64_t j = 0; j < in; ++j) {
    n.column_unit[j] = std::max(n.column_unit[j], tiny);
    inverse[j] = 1.0 / n.column_unit[j];
  }
  const double floor = std::sqrt(static_cast<double>(std::max(in, out))) * 1e-153;
  std::fill(n.column.begin(), n.column.end(), 0.0);
  for (int64_t i = 0; i < out; ++i) {
    n.row[i] = (std::sqrt(sum_of_row(scratch.data(), w + i * in, inverse.data(), s, in)) + floor) / s;
    std::fill(row_inverse.begin(), row_inverse.end(), 1.0 / n.row_unit[i]);
    sum_of_row(n.column.data(), w + i * in, row_inverse.data(), s, in);
  }
  for (double& c : n.column) c = (std::sqrt(c) + floor) / s;
  return n;
}

}  // namespace llr
