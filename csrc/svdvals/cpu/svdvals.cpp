// torch.ops.llr.svdvals on the CPU.
//
// A matrix that is much longer than wide is shortened first: blocks of its rows are replaced by their R,
// until at most two blocks are left. Short blocks have small rounding errors, and are independent of each
// other. Then
//   - matrices with a short side up to widest_in_lanes go through lanes.inc, a lane each;
//   - others through LAPACK, each on one thread.
// The sizes alone decide how the work is divided, and a lane does not depend on the others. So results have
// the same bits for any number of threads and together with any other matrices.
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svdvals.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "common/mlp_arguments.h"
#include "common/memory.h"
#include "svdvals/svdvals_arguments.h"
#include "common/cpu/allocate.h"
#include "common/cpu/interrupt.h"
#include "common/cpu/kernels.h"
#include "lanes.h"
#include "common/cpu/products.h"

namespace llr {
namespace {

constexpr int64_t widest_in_lanes = 128;
constexpr int64_t fewest_in_lanes = 3;   // matrices, if they are wider than:
constexpr int64_t always_in_lanes = 24;
constexpr int64_t numbers_at_once = 1 << 18;  // between two checks for signals
constexpr int64_t least_block_rows = 64;
constexpr int64_t most_block_rows = 256;  // in lanes: they stay in the second-level cache

// A batch of matrices with at least as many rows as columns, anywhere in memory.
struct Batch {
  std::vector<const void*> data;
  bool single;
  int64_t rows, columns;
  int64_t row_stride, column_stride;

  int64_t count() const { return static_cast<int64_t>(data.size()); }

  const void* at(int64_t matrix, int64_t row) const {
    const int64_t offset = row * row_stride * (single ? 4 : 8);
    return static_cast<const char*>(data[matrix]) + offset;
  }
};

double largest(const double* p, int64_t count) { return math_kernels().largest_double(p, count); }
double largest(const float* p, int64_t count) { return math_kernels().largest_float(p, count); }

template <typename T>
double largest_entry(const Batch& batch, int64_t matrix) {
  const T* from = static_cast<const T*>(batch.data[matrix]);
  const bool in_one_piece = batch.column_stride == 1 && batch.row_stride == batch.columns;
  const bool few = batch.rows * batch.columns <= numbers_at_once;
  const int64_t at_once = few ? batch.rows : std::max<int64_t>(1, numbers_at_once / batch.columns);
  double most = 0.0;
  for (int64_t first = 0; first < batch.rows && std::isfinite(most); first += at_once) {
    const int64_t last = std::min(batch.rows, first + at_once);
    if (!few) interruption_point((last - first) * batch.columns);
    if (in_one_piece) {
      const double entry = largest(from + first * batch.columns, (last - first) * batch.columns);
      most = entry > most || std::isnan(entry) ? entry : most;
      continue;
    }
    for (int64_t i = first; i < last; ++i) {
      for (int64_t j = 0; j < batch.columns; ++j) {
        const double entry = std::abs(from[i * batch.row_stride + j * batch.column_stride]);
        most = entry > most || std::isnan(entry) ? entry : most;
      }
    }
  }
  return most;
}

// The power of two that brings the largest entry near 1, so that squares stay in range; NaN if there is a NaN
// or an infinity.
double scale_of(const Batch& batch, int64_t matrix) {
  const double most = batch.single ? largest_entry<float>(batch, matrix) : largest_entry<double>(batch, matrix);
  if (!std::isfinite(most)) return std::numeric_limits<double>::quiet_NaN();
  if (most == 0.0) return 1.0;
  return std::ldexp(1.0, std::clamp(-std::ilogb(most), -1020, 1020));
}

// The matrix in one piece of memory, as doubles.
at::Tensor dense(const Batch& batch, int64_t matrix, int64_t first, int64_t rows, double scale) {
  const at::Tensor view =
      at::from_blob(const_cast<void*>(batch.at(matrix, first)), {rows, batch.columns},
                    {batch.row_stride, batch.column_stride},
                    at::TensorOptions(batch.single ? at::kFloat : at::kDouble));
  at::Tensor result = at::empty({rows, batch.columns}, at::TensorOptions(at::kDouble));
  result.copy_(view);
  return scale == 1.0 ? result : result.mul_(scale);
}

class Values {
 public:
  // result: (count, columns) doubles
  Values(Batch batch, double* result, int64_t sweeps)
      : batch_(std::move(batch)), scales_(batch_.count()), result_(result), sweeps_(sweeps) {}

  void run() {
    const int64_t n = batch_.columns;
    in_lanes_ = n <= widest_in_lanes;
    const int64_t block = in_lanes_ ? std::clamp(4 * n, least_block_rows, most_block_rows) : 8 * n;
    if (batch_.rows > 2 * block) {
      parallel_tasks(batch_.count(), batch_.count() * batch_.rows * n, [&](int64_t i) { find_scale(i); });
      while (batch_.rows > 2 * block) shorten(block);
    }
    if (in_lanes_ && (n <= always_in_lanes || batch_.count() >= fewest_in_lanes)) {
      values_in_lanes();
    } else {
      parallel_tasks(batch_.count(), work(), [&](int64_t i) {
        find_scale(i);
        lapack(i);
        unscale(i);
      });
    }
  }

 private:
  int64_t work() const { return batch_.count() * batch_.rows * batch_.columns * batch_.columns; }

  // Finds the scale unless it is known. To be called just before the matrix is used, which is then in the
  // cache.
  void find_scale(int64_t i) {
    if (scales_[i] == 0.0) scales_[i] = scale_of(batch_, i);
  }

  void unscale(int64_t i) {
    for (int64_t j = i * batch_.columns; j < (i + 1) * batch_.columns; ++j) {
      result_[j] = std::isnan(scales_[i]) ? scales_[i] : result_[j] / scales_[i];
    }
  }

  // f(first, count, scratch) for every `at_once` of `total` items.
  template <typename F>
  void over_groups(int64_t total, int64_t at_once, int64_t rows, const F& f) {
    const LaneKernels& kernels = lane_kernels();
    const int64_t groups = ceil_div(total, at_once);
    const int64_t grain = std::max<int64_t>(1, groups * thread_work / std::max<int64_t>(work(), 1));
    parallel_for(groups, grain, [&](int64_t begin, int64_t end) {
      const AlignedDoubles scratch = aligned_doubles(kernels.scratch(rows, batch_.columns));
      for (int64_t g = begin; g < end; ++g) {
        interruption_point(work() / groups);
        const int64_t first = g * at_once;
        f(first, static_cast<int>(std::min(at_once, total - first)), scratch.get());
      }
    });
  }

  // Replaces blocks of rows by their R, one below the other.
  void shorten(int64_t block) {
    const int64_t n = batch_.columns, pieces = ceil_div(batch_.rows, block);
    const auto first_row = [&](int64_t piece) { return batch_.rows * piece / pieces; };
    const int64_t shorter = pieces * n;
    AlignedDoubles stacked = aligned_doubles(batch_.count() * shorter * n);
    const auto place = [&](int64_t item) { return stacked.get() + item * n * n; };
    if (in_lanes_) {
      const int64_t at_once = lane_kernels().lanes;
      over_groups(batch_.count() * pieces, at_once, block, [&](int64_t first, int count, double* scratch) {
        std::array<MatrixView, most_at_once> views;
        std::array<double*, most_at_once> results;
        for (int l = 0; l < count; ++l) {
          const int64_t matrix = (first + l) / pieces, piece = (first + l) % pieces;
          views[l] = view(matrix, first_row(piece), first_row(piece + 1));
          results[l] = place(first + l);
        }
        lane_kernels().triangles(views.data(), count, n, results.data(), scratch);
      });
    } else {
      parallel_tasks(batch_.count() * pieces, work(), [&](int64_t item) {
        const int64_t matrix = item / pieces, from = first_row(item % pieces);
        const int64_t rows = first_row(item % pieces + 1) - from;
        const at::Tensor R =
            std::get<1>(at::linalg_qr(dense(batch_, matrix, from, rows, scale(matrix)), "r"));
        at::from_blob(place(item), {n, n}, at::TensorOptions(at::kDouble)).copy_(R);
      });
    }
    for (int64_t i = 0; i < batch_.count(); ++i) {
      batch_.data[i] = place(i * pieces);
    }
    scaled_ = true;
    batch_.single = false;
    batch_.rows = shorter;
    batch_.row_stride = n;
    batch_.column_stride = 1;
    storage_ = std::move(stacked);
  }

  // The factor that the numbers in memory still have to be multiplied by.
  double scale(int64_t matrix) const { return scaled_ ? 1.0 : scales_[matrix]; }

  // For a matrix that is not finite: a view without rows, which counts as zero.
  MatrixView view(int64_t matrix, int64_t from, int64_t to) const {
    return {batch_.at(matrix, from), batch_.single, batch_.row_stride, batch_.column_stride,
            std::isnan(scales_[matrix]) ? 0 : to - from, scale(matrix)};
  }

  void values_in_lanes() {
    const int64_t n = batch_.columns;
    // More matrices at once are faster, if there are enough to keep every thread busy.
    const int64_t at_once = batch_.count() >= at::get_num_threads() * lane_kernels().values_at_once
                                ? lane_kernels().values_at_once
                                : lane_kernels().lanes;
    over_groups(batch_.count(), at_once, batch_.rows, [&](int64_t first, int count, double* scratch) {
      std::array<MatrixView, most_at_once> views;
      std::array<double*, most_at_once> results;
      for (int l = 0; l < count; ++l) {
        find_scale(first + l);
        views[l] = view(first + l, 0, batch_.rows);
        results[l] = result_ + (first + l) * n;
      }
      const unsigned failed = lane_kernels().values(views.data(), count, n, static_cast<int>(sweeps_),
                                                    results.data(), scratch);
      for (int l = 0; l < count; ++l) {
        if ((failed >> l & 1) != 0) lapack(first + l);
        unscale(first + l);
      }
    });
  }

  // Writes NaN if LAPACK does not converge or the matrix is not finite.
  void lapack(int64_t i) {
    double* const result = result_ + i * batch_.columns;
    std::fill_n(result, batch_.columns, std::numeric_limits<double>::quiet_NaN());
    if (std::isnan(scales_[i])) return;
    const at::AutoDispatchBelowADInplaceOrView guard;
    const OneBlasThread one_thread;
    try {
      const at::Tensor values = at::linalg_svdvals(dense(batch_, i, 0, batch_.rows, scale(i)));
      std::copy_n(values.const_data_ptr<double>(), batch_.columns, result);
    } catch (const c10::LinAlgError&) {
    }
  }

  Batch batch_;
  std::vector<double> scales_;  // 0 where not known yet, NaN for a matrix that is not finite
  bool scaled_ = false;         // whether the matrices in batch_ are already multiplied by them
  double* const result_;
  const int64_t sweeps_;
  bool in_lanes_ = true;
  AlignedDoubles storage_;  // holds the matrices after they are shortened
};

at::Tensor svdvals(const at::Tensor& A, int64_t sweeps) {
  check_svdvals(A, sweeps);
  // Blocks of rows are read without a copy, but the matrices that replace them are not much smaller.
  const double bytes = 8.0 * static_cast<double>(A.numel());
  TORCH_CHECK(A.is_contiguous() || fits_memory(bytes), "svdvals: A of shape ", A.sizes(),
              ", whose repeated numbers have to be copied, ", beyond_memory(bytes));
  const at::Tensor input = A.is_neg() || !is_aligned(A) ? readable("svdvals", "A", A) : A;
  const int64_t m = A.size(-2), n = A.size(-1), k = std::min(m, n);
  std::vector<int64_t> sizes(A.sizes().begin(), A.sizes().end() - 2);
  sizes.push_back(k);
  check_result("svdvals", sizes, at::kDouble);
  at::Tensor result = at::empty(sizes, at::TensorOptions(at::kDouble));
  if (result.numel() == 0) return result.to(A.scalar_type());
  const int64_t count = result.numel() / k;

  Batch batch;
  batch.single = A.scalar_type() == at::kFloat;
  const int64_t tall = m >= n ? -2 : -1, wide = m >= n ? -1 : -2;
  batch.rows = input.size(tall);
  batch.columns = input.size(wide);
  batch.row_stride = input.stride(tall);
  batch.column_stride = input.stride(wide);
  batch.data.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    int64_t offset = 0, rest = i;
    for (int64_t axis = input.dim() - 3; axis >= 0; --axis) {
      offset += rest % input.size(axis) * input.stride(axis);
      rest /= input.size(axis);
    }
    batch.data[i] = static_cast<const char*>(input.const_data_ptr()) + offset * input.element_size();
  }
  Values(std::move(batch), result.mutable_data_ptr<double>(), sweeps).run();
  return result.to(A.scalar_type());
}

}  // namespace
}  // namespace llr

TORCH_LIBRARY_IMPL(llr, CPU, m) { m.impl("svdvals", &llr::Interruptible<"svdvals", &llr::svdvals>::call); }
