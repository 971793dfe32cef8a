// A running error analysis: bounds on the errors of the signals of an MLP, as computed in double.
//
// With u = 2^-53, z^ a computed number, z the exact one, ez >= |z^ - z| and the same for the others:
//
//   z = W a + b:        ez = |W| (ea + (m + 2) u |a|) + (m + 2) u |b|                     (m terms)
//   a = sigma(z):       ea = (sup |sigma'| near z) ez + the table's own error;  eg likewise with sigma''
//   t = W' d:           et = |W|' (ed + (h + 2) u |d|)                                   (h terms)
//   d = t sigma'(z):    ed = et (|g| + eg) + |t| (eg + 2u |g|)
//   entry d_i a_j:      ed_i (|a_j| + ea_j) + |d_i| (ea_j + 2u |a_j|)
//
// With A = |a| + ea and e = ea + 2u |a|, the root of the sum of squares of these errors over a layer is at
// most |ed| |A| + |d| |e| (norms of vectors), so that no entry of the Jacobian is computed. If W is large,
// products with |W| are replaced by the Cauchy-Schwarz inequality, in units in which the columns (rows) of W
// have norm 1: one more matrix product would double the time.
//
// Absolute terms cover underflow, also where denormal numbers are flushed to zero. Overflow gives infinity or
// NaN, and the bound is then infinity. A factor at the end covers the roundings of the bound itself.
//
// Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed. (2002), sections 3.1 and
// 3.3, for running error analysis; docs/rank.md.
#pragma once

#include <cstdint>

#include "common/activation.h"

namespace llr {

constexpr double unit_roundoff = 0x1p-53;
constexpr double float_roundoff = 0x1p-24;
constexpr double least = 1e-307;        // more than an operation loses by underflow
constexpr double rounded_up = 1.01;     // for the roundings of a bound's own sums of positive numbers

struct ErrorKernels {
  // v[i] = e[i] + c |a[i]|, the operand of a product with |W| that gives the next errors; plus `least` unless
  // the sum is exactly zero.
  void (*feed)(double* v, const double* e, const double* a, double c, int64_t count);
  // ez[i] += c |b[i]|
  void (*add_magnitudes)(double* ez, const double* b, double c, int64_t count);
  // In: z in eg, ez in ea, a = sigma(z), g = sigma'(z). Out: ea, eg, and in v the result of `feed` for ea,
  // unless v is null.
  void (*activation)(Activation, double* ea, double* eg, double* v, const double* a, const double* g, double c,
                     int64_t count);
  // In: et in ed (unless the derivatives t are exact), the slopes g and their errors. Out: ed, and in v the
  // result of `feed` for ed and t g, unless v is null.
  void (*slope)(double* ed, double* v, const double* t, const double* g, const double* eg, double c, bool exact,
                int64_t count);
  // For each of `rows` rows of `count` numbers: the sum of (e + c |a|)^2, and of (e + |a|)^2 unless `with_1`
  // is null.
  void (*squares)(double* with_c, double* with_1, const double* e, const double* a, double c, int64_t rows,
                  int64_t count);
  // The sum of (unit[i] v[i])^2, where v is the result of `feed`.
  double (*fed_squares)(const double* unit, const double* e, const double* a, double c, int64_t count);
  // norm[j] += (s w[j] unit[j])^2 over a row (unit null: 1); returns the sum of these squares.
  double (*row_squares)(double* norm, const double* w, const double* unit, double s, int64_t count);
  double (*row_squares_float)(double* norm, const float* w, const double* unit, double s, int64_t count);
};

const ErrorKernels& error_kernels();

}  // namespace llr
