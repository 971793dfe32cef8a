// torch.ops.llr.svdvals on CUDA.
//
// Matrices whose short side fits the shared memory of a block are computed by the kernels of svdvals.cuh.
// Tall ones are shortened first: pieces of their rows are replaced by their R, until one piece is left. Wider
// matrices, and those that need more than `sweeps` sweeps, are computed by torch.linalg one by one: by
// one-sided Jacobi, then QR iteration, then on the CPU, until one of these finds the values. How the work is
// divided depends only on the sizes and the shared memory, and no matrix depends on the others, so that
// results have the same bits together with any other matrices.
//
// A call waits once for the device, and more often for matrices that torch.linalg computes.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_svdvals.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "common/mlp_arguments.h"
#include "svdvals/svdvals_arguments.h"
#include "common/cuda/device.h"
#include "svdvals.h"

namespace llr::cuda {

// scratch_numbers: the scratch of a launch, beyond that of one matrix.
// svdvals_of_torch: the singular values of A by one of cuSOLVER's drivers; without a driver, on the CPU.
#if defined(LLR_EMULATE)
constexpr int64_t scratch_numbers = 1 << 12;  // so that tests can afford more than one launch
at::Tensor svdvals_of_torch(const at::Tensor& A, std::optional<std::string_view> driver);  // fails on demand
#else
constexpr int64_t scratch_numbers = int64_t(1) << 25;
static at::Tensor svdvals_of_torch(const at::Tensor& A, std::optional<std::string_view> driver) {
  return at::linalg_svdvals(A, driver);
}
#endif

namespace {

constexpr int64_t qr_at_once = 64;  // blocks of rows, in torch

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many rows are left of `rows` rows after pieces of them have been replaced by their R until only one piece
// is left.
int64_t shortest_rows(int64_t rows, int64_t columns) {
  while (rows > piece_rows(columns)) rows = ceil_div(rows, piece_rows(columns)) * columns;
  return rows;
}

Matrices matrices_of(const at::Tensor& batch, bool scaled) {
  return {batch.const_data_ptr(),
          batch.scalar_type() == at::kFloat,
          scaled,
          batch.size(1),
          batch.size(2),
          batch.stride(0),
          batch.stride(1),
          batch.stride(2)};
}

// The values of A (count, m, n), m >= n, by the kernels: values (count, n), and failed (count), 1 where they
// did not converge.
void by_kernels(const at::Tensor& A, const SvdLayout& layout, int64_t limit, int sweeps, at::Tensor& values,
                at::Tensor& failed) {
  const int64_t rows = A.size(1), n = A.size(2), piece = piece_rows(n), parts = peak_parts(rows, n);
  const cudaStream_t stream = current_stream();
  const int64_t triangles = rows > piece ? ceil_div(rows, piece) * n * n : 0;
  const int64_t at_once = std::clamp<int64_t>(scratch_numbers / std::max(parts, triangles), 1, A.size(0));
  for (int64_t first = 0; first < A.size(0); first += at_once) {
    const int64_t count = std::min(at_once, A.size(0) - first);
    at::Tensor batch = A.narrow(0, first, count);
    const at::Tensor found = empty_on(A, {count, parts}, at::kDouble);
    const Peaks peaks{found.const_data_ptr<double>(), static_cast<int>(parts)};
    Matrices from = matrices_of(batch, false);
    check(find_peaks(from, count, peaks.parts, found.mutable_data_ptr<double>(), stream), "svdvals");
    while (from.rows > piece) {
      const int64_t pieces = ceil_div(from.rows, piece);
      const at::Tensor shorter = empty_on(A, {count, pieces * n, n}, at::kDouble);
      const SvdLayout of_pieces = triangles_layout(ceil_div(from.rows, pieces), n, limit);
      double* const to = shorter.mutable_data_ptr<double>();
      check(find_triangles(from, count, pieces, peaks, of_pieces, to, stream), "svdvals");
      batch = shorter;
      from = matrices_of(batch, true);
    }
    check(find_values(from, count, peaks, layout, sweeps, values.mutable_data_ptr<double>() + first * n,
                      failed.mutable_data_ptr<int>() + first, stream),
          "svdvals");
  }
}

at::Tensor times_power_of_two(const at::Tensor& x, int exponent) {
  const int half = exponent / 2;  // the whole may be beyond the range of doubles
  return exponent == 0 ? x : x.mul(std::ldexp(1.0, half)).mul_(std::ldexp(1.0, exponent - half));
}

// A matrix of at most two blocks of rows with the singular values of A (m, n) times 2^exponent, m >= n, as
// doubles.
at::Tensor shortened(at::Tensor A, int exponent) {
  const int64_t n = A.size(1), block = std::max<int64_t>(256, 16 * n);
  while (A.size(0) > 2 * block) {
    std::vector<at::Tensor> shorter;
    for (int64_t first = 0; first < A.size(0); first += qr_at_once * block) {
      const int64_t rows = std::min(qr_at_once * block, A.size(0) - first), blocks = rows / block;
      const at::Tensor some = times_power_of_two(A.narrow(0, first, rows).to(at::kDouble), exponent);
      if (blocks > 0) {
        const at::Tensor whole = some.narrow(0, 0, blocks * block).reshape({blocks, block, n});
        shorter.push_back(std::get<1>(at::linalg_qr(whole, "r")).reshape({blocks * n, n}));
      }
      shorter.push_back(some.narrow(0, blocks * block, rows - blocks * block));
    }
    A = at::cat(shorter);
    exponent = 0;
  }
  return times_power_of_two(A.to(at::kDouble), exponent);
}

// Whether this driver found the values of a finite matrix.
bool try_torch(const at::Tensor& A, std::optional<std::string_view> driver, at::Tensor& values) {
  try {
    const at::Tensor found = svdvals_of_torch(A, driver);
    if (!found.isfinite().all().item<bool>()) return false;
    values.copy_(found);
    return true;
  } catch (const c10::LinAlgError&) {
    return false;
  }
}

// values (n) of one matrix (m, n), m >= n; NaN where it is not finite or nothing converges.
void by_torch(const at::Tensor& A, at::Tensor values) {
  const auto [least, most] = at::aminmax(A);
  const double peak = std::max(std::abs(least.item<double>()), std::abs(most.item<double>()));
  values.fill_(std::numeric_limits<double>::quiet_NaN());
  if (!std::isfinite(least.item<double>()) || !std::isfinite(peak)) return;
  const int exponent = peak == 0.0 ? 0 : std::ilogb(peak);
  const at::Tensor scaled = shortened(A, -exponent);
  const bool found = try_torch(scaled, "gesvdj", values) || try_torch(scaled, "gesvd", values) ||
                     try_torch(scaled.cpu(), std::nullopt, values);
  if (found) values.copy_(times_power_of_two(values, exponent));
}

at::Tensor svdvals(const at::Tensor& A, int64_t sweeps) {
  const OnDevice guard(A);
  check_svdvals(A, sweeps);
  const at::AutoDispatchBelowADInplaceOrView below;
  const at::Tensor input = A.is_neg() || !is_aligned(A) ? readable("svdvals", "A", A) : A;
  const at::Tensor tall = A.size(-2) >= A.size(-1) ? input : input.transpose(-2, -1);
  const int64_t rows = tall.size(-2), n = tall.size(-1);
  std::vector<int64_t> sizes(A.sizes().begin(), A.sizes().end() - 2);
  sizes.push_back(n);
  at::Tensor result = empty_on(A, sizes, at::kDouble);
  if (result.numel() == 0) return result.to(A.scalar_type());

  const int64_t count = result.numel() / n;
  const at::Tensor batch = tall.reshape({count, rows, n});  // a view if one stride leads from matrix to matrix
  at::Tensor values = result.view({count, n});
  int64_t limit = 0;
  check(find_shared_limit(&limit), "svdvals");
  const SvdLayout layout = values_layout(shortest_rows(rows, n), n, limit);
  if (sweeps > 0 && layout.rows > 0) {
    at::Tensor failed = empty_on(A, {count}, at::kInt);
    by_kernels(batch, layout, limit, static_cast<int>(sweeps), values, failed);
    const at::Tensor slow = failed.nonzero().cpu();
    for (int64_t i = 0; i < slow.numel(); ++i) {
      const int64_t matrix = slow.const_data_ptr<int64_t>()[i];
      by_torch(batch.select(0, matrix), values.select(0, matrix));
    }
  } else {
    for (int64_t i = 0; i < count; ++i) by_torch(batch.select(0, i), values.select(0, i));
  }
  return result.to(A.scalar_type());
}

}  // namespace
}  // namespace llr::cuda

LLR_CUDA_LIBRARY(m) { m.impl("svdvals", &llr::cuda::svdvals); }
