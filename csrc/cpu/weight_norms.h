// Norms that bound products with the magnitudes of a weight matrix, without the product.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "error_bound.h"
#include "kernels.h"

namespace llr {

// sum_j |W_ij| v_j <= row[i] * norm(column_unit * v) for v >= 0, and sum_i |W_ij| w_i <= column[j] * norm(row_unit * w):
// Cauchy and Schwarz, with the entries of v in units of the norms of the columns of W, so that the units of the
// neurons do not matter. All within a factor of 1.01.
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

template <typename T>
WeightNorms weight_norms(const T* w, int64_t out, int64_t in) {
  constexpr double tiny = 1e-150;  // squares of smaller numbers may be lost
  const double top = largest(w, out * in);
  int exponent = 0;
  std::frexp(top, &exponent);
  const double s = std::ldexp(1.0, std::clamp(-exponent, -1000, 1000));
  WeightNorms n;
  std::vector<double> ones(in, 1.0), scratch(in, 0.0);
  n.row_unit.resize(out);
  n.column_unit.assign(in, 0.0);
  for (int64_t i = 0; i < out; ++i) {
    n.row_unit[i] = std::max(std::sqrt(sum_of_row(n.column_unit.data(), w + i * in, ones.data(), s, in)), tiny);
  }
  for (double& c : n.column_unit) c = std::max(std::sqrt(c), tiny);
  // Once more in these units.
  std::vector<double> inverse(in), row_inverse(in);
  for (int64_t j = 0; j < in; ++j) inverse[j] = 1.0 / n.column_unit[j];
  const double floor = std::sqrt(static_cast<double>(std::max(in, out))) * 1e-153;
  n.row.resize(out);
  n.column.assign(in, 0.0);
  for (int64_t i = 0; i < out; ++i) {
    n.row[i] = (std::sqrt(sum_of_row(scratch.data(), w + i * in, inverse.data(), s, in)) + floor) / s;
    std::fill(row_inverse.begin(), row_inverse.end(), 1.0 / n.row_unit[i]);
    sum_of_row(n.column.data(), w + i * in, row_inverse.data(), s, in);
  }
  for (double& c : n.column) c = (std::sqrt(c) + floor) / s;
  return n;
}

}  // namespace llr
