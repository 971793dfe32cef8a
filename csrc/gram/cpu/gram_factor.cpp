// torch.ops.llr.gram_factor on the CPU: Cholesky's factorisation with diagonal pivoting, in double-double.
//
// A column is computed when its pivot is chosen, from the columns before it; only the diagonal is updated at
// every step. So a matrix of rank r costs N r^2 / 2 multiplications instead of N^3 / 3, and K is never
// written.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/mlp_arguments.h"
#include "common/cpu/allocate.h"
#include "double_double.h"
#include "finite/cpu/finite.h"
#include "common/cpu/interrupt.h"
#include "common/cpu/products.h"

namespace llr {
namespace {

// Pivots below this fraction of the largest diagonal entry are rounding errors: a sum of N products has about
// N roundings of 2^-106. Leaving them out changes a singular value by at most N 2^-52 of the largest one.
double noise(int64_t rows) { return static_cast<double>(rows) * 0x1p-104; }

class Cholesky {
 public:
  Cholesky(const double* high, const double* low, int64_t rows)
      : high_(high), low_(low), rows_(rows), diagonal_(rows), diagonal_low_(rows), taken_(rows, false) {}

  // The rank: the number of pivots above the noise. K = L L' with L (rows, rank).
  int64_t run() {
    for (int64_t i = 0; i < rows_; ++i) {
      diagonal_[i] = high_[i * rows_ + i];
      diagonal_low_[i] = low_[i * rows_ + i];
    }
    const double largest = rows_ > 0 ? *std::max_element(diagonal_.begin(), diagonal_.end()) : 0.0;
    const double least = largest * noise(rows_);
    L_high_ = aligned_doubles(rows_ * rows_);
    L_low_ = aligned_doubles(rows_ * rows_);
    std::vector<double> m_high(rows_), m_low(rows_);
    for (rank_ = 0; rank_ < rows_; ++rank_) {
      interruption_point(rows_);
      int64_t pivot = -1;
      for (int64_t i = 0; i < rows_; ++i) {
        if (!taken_[i] && (pivot < 0 || diagonal_[i] > diagonal_[pivot])) pivot = i;
      }
      if (!(diagonal_[pivot] > least) || !(diagonal_[pivot] > 0.0)) break;
      step(pivot, m_high, m_low);
    }
    return rank_;
  }

  // Entry (row, column) of L, rounded to double.
  double entry(int64_t row, int64_t column) const { return L_high_[column * rows_ + row]; }

 private:
  void step(int64_t pivot, std::vector<double>& m_high, std::vector<double>& m_low) {
    const DoubleDoubleKernels& kernels = double_double_kernels();
    double scale_high, scale_low;
    kernels.inverse_root(diagonal_[pivot], diagonal_low_[pivot], &scale_high, &scale_low);
    for (int64_t c = 0; c < rank_; ++c) {
      m_high[c] = L_high_[c * rows_ + pivot];
      m_low[c] = L_low_[c * rows_ + pivot];
    }
    double* const x = L_high_.get() + rank_ * rows_;
    double* const x_low = L_low_.get() + rank_ * rows_;
    std::copy_n(high_ + pivot * rows_, rows_, x);
    std::copy_n(low_ + pivot * rows_, rows_, x_low);
    const int64_t pieces = ceil_div(rows_, piece);
    parallel_tasks(pieces, rows_ * (rank_ + 4) * 10, [&](int64_t i) {
      kernels.cholesky_step(x, x_low, L_high_.get(), L_low_.get(), rows_, m_high.data(), m_low.data(), rank_,
                            scale_high, scale_low, diagonal_.data(), diagonal_low_.data(), i * piece,
                            std::min(rows_, (i + 1) * piece));
    });
    for (int64_t i = 0; i < rows_; ++i) {
      if (taken_[i]) x[i] = x_low[i] = 0.0;  // exactly: the triangle above the pivots
    }
    taken_[pivot] = true;
  }

  static constexpr int64_t piece = 64;

  const double* const high_;
  const double* const low_;
  const int64_t rows_;
  int64_t rank_ = 0;
  std::vector<double> diagonal_, diagonal_low_;
  std::vector<bool> taken_;
  AlignedDoubles L_high_, L_low_;  // column c at c * rows
};

at::Tensor gram_factor(const at::Tensor& K) {
  TORCH_CHECK(K.scalar_type() == at::kDouble, "gram_factor: K is ", K.scalar_type(), "; expected float64");
  TORCH_CHECK((K.dim() == 3 || K.dim() == 4) && K.size(0) == 2 && K.size(-1) == K.size(-2),
              "gram_factor: K has shape ", K.sizes(), "; expected (2, N, N) or (2, B, N, N), high and low parts");
  const at::Tensor dense = readable("gram_factor", "K", K);
  const int64_t rows = K.size(-1), count = K.dim() == 4 ? K.size(1) : 1;
  const double* const data = dense.const_data_ptr<double>();
  TORCH_CHECK(all_finite(dense), "gram_factor: K has NaN or infinite entries; expected finite ones");
  check_result("gram_factor", {count + 2, rows, rows}, at::kDouble);  // with two triangles as scratch
  at::Tensor L = at::zeros({count, rows, rows}, at::TensorOptions(at::kDouble));
  int64_t most = 0;
  for (int64_t b = 0; b < count; ++b) {
    Cholesky factor(data + b * rows * rows, data + (count + b) * rows * rows, rows);
    const int64_t rank = factor.run();
    double* const to = L.mutable_data_ptr<double>() + b * rows * rows;
    interruption_point(rows);
    for (int64_t i = 0; i < rows; ++i) {
      if (rank > 1000) interruption_point(rank);
      for (int64_t c = 0; c < rank; ++c) to[i * rows + c] = factor.entry(i, c);
    }
    most = std::max(most, rank);
  }
  L = L.narrow(-1, 0, most).contiguous();
  return K.dim() == 4 ? L : L[0];
}

}  // namespace
}  // namespace llr

TORCH_LIBRARY_IMPL(llr, CPU, m) { m.impl("gram_factor", &llr::Interruptible<"gram_factor", &llr::gram_factor>::call); }
