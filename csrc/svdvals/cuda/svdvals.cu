#include "svdvals.cuh"

#include <algorithm>

namespace llr::cuda {
namespace {

constexpr int64_t most_blocks = (int64_t(1) << 31) - 1;
constexpr int64_t shared_without_asking = 48 * 1024;
constexpr int64_t peak_numbers = 16384;  // that a block reads, unless there are very many
constexpr int64_t most_peak_parts = 1024;
constexpr int64_t fewest_rows_at_a_time = 8;  // added below a triangle

// The stride is 4 or 12 modulo the 16 doubles that the banks hold, so the columns of neighbouring groups of 4
// lanes lie in different banks.
constexpr int64_t stride_for(int64_t rows) { return (rows + 3) / 8 * 8 + 4; }

constexpr int64_t power_of_two(int64_t least) {
  int64_t power = 1;
  while (power < least) power *= 2;
  return power;
}

// The layout for `wanted` rows, or for as many as fit. Empty if not even a triangle and a few more rows fit.
SvdLayout layout_for(int64_t rows, int64_t wanted, int64_t columns, int64_t threads, int64_t matrices,
                     int64_t limit) {
  if (rows < 1 || columns > limit / 8) return {};
  const int64_t least = std::min(rows, columns + fewest_rows_at_a_time);
  const auto bytes = [&](int64_t stride) {
    return shared_bytes<double>(matrices * stride * columns) + shared_bytes<double>(svd_block / pair_lanes);
  };
  int64_t stride = stride_for(std::clamp(wanted, least, rows));
  while (stride > least && bytes(stride) > limit) stride -= 8;
  if (stride < least || bytes(stride) > limit) return {};
  return {static_cast<int>(std::min(rows, stride)), static_cast<int>(stride), static_cast<int>(threads),
          static_cast<int>(matrices), bytes(stride)};
}

template <typename Kernel>
cudaError_t allow_shared(const Kernel& kernel, int64_t bytes) {
  if (bytes <= shared_without_asking) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace

int64_t peak_parts(int64_t rows, int64_t columns) {
  return std::clamp<int64_t>(rows / std::max<int64_t>(1, peak_numbers / columns), 1, most_peak_parts);
}

SvdLayout values_layout(int64_t rows, int64_t columns, int64_t shared_limit) {
  const int64_t wanted = columns + std::max<int64_t>(16, columns / 4);
  const int64_t threads = std::min<int64_t>(pair_lanes * power_of_two((columns + 1) / 2), svd_block);
  const int64_t matrices = std::max<int64_t>(1, least_svd_block / threads);
  return layout_for(rows, wanted, columns, threads, matrices, shared_limit);
}

SvdLayout triangles_layout(int64_t rows, int64_t columns, int64_t shared_limit) {
  return layout_for(rows, std::max<int64_t>(2 * columns, 128), columns, svd_block, 1, shared_limit);
}

cudaError_t find_shared_limit(int64_t* bytes) {
  int device = 0, limit = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  *bytes = limit;
  return error;
}

cudaError_t find_peaks(const Matrices& from, int64_t count, int parts, double* peaks, cudaStream_t stream) {
  if (count * parts > most_blocks) return cudaErrorInvalidConfiguration;
  LLR_LAUNCH(peaks_kernel, static_cast<unsigned>(count * parts), svd_block,
             static_cast<size_t>(shared_bytes<double>(svd_block / 32)), stream, from, parts, peaks);
  return cudaGetLastError();
}

cudaError_t find_triangles(const Matrices& from, int64_t count, int64_t pieces, const Peaks& peaks,
                           const SvdLayout& layout, double* triangles, cudaStream_t stream) {
  if (count * pieces > most_blocks) return cudaErrorInvalidConfiguration;
  const cudaError_t error = allow_shared(triangles_kernel, layout.bytes);
  if (error != cudaSuccess) return error;
  LLR_LAUNCH(triangles_kernel, static_cast<unsigned>(count * pieces), svd_block,
             static_cast<size_t>(layout.bytes), stream, from, static_cast<unsigned>(pieces), peaks, layout,
             triangles);
  return cudaGetLastError();
}

cudaError_t find_values(const Matrices& from, int64_t count, const Peaks& peaks, const SvdLayout& layout,
                        int sweeps, double* values, int* failed, cudaStream_t stream) {
  const int64_t blocks = (count + layout.matrices - 1) / layout.matrices;
  if (blocks > most_blocks) return cudaErrorInvalidConfiguration;
  const cudaError_t error = allow_shared(values_kernel, layout.bytes);
  if (error != cudaSuccess) return error;
  LLR_LAUNCH(values_kernel, static_cast<unsigned>(blocks), layout.threads * layout.matrices,
             static_cast<size_t>(layout.bytes), stream, from, count, peaks, layout, sweeps, values, failed);
  return cudaGetLastError();
}

}  // namespace llr::cuda
