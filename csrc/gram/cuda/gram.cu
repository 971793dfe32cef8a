#include "gram.cuh"

#include <algorithm>

namespace llr::cuda {
namespace {

constexpr int64_t most_blocks = (int64_t(1) << 31) - 1;

template <typename Arithmetic>
cudaError_t launch(double* high, double* low, int64_t points, int64_t rows, const GramLayer& layer, bool add,
                   bool last, cudaStream_t stream) {
  const int64_t bands = (rows + tile - 1) / tile, tiles = bands * (bands + 1) / 2;
  if (rows > most_blocks || tiles > most_blocks) return cudaErrorInvalidConfiguration;  // 2^41 entries in K
  const int64_t at_once = most_blocks / tiles;
  for (int64_t point = 0; point < points; point += at_once) {
    const int64_t some = std::min(at_once, points - point);
    LLR_LAUNCH((gram_kernel<Arithmetic>), static_cast<unsigned>(some * tiles), Arithmetic::threads,
               static_cast<size_t>(gram_shared_bytes<Arithmetic>()), stream, high, low, static_cast<int>(rows),
               static_cast<unsigned>(point), static_cast<unsigned>(tiles), add, last, layer);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t add_layer(double* high, double* low, int64_t points, int64_t rows, const GramLayer& layer, bool add,
                      bool last, cudaStream_t stream) {
  return low == nullptr ? launch<Plain>(high, low, points, rows, layer, add, last, stream)
                        : launch<DoubleDouble>(high, low, points, rows, layer, add, last, stream);
}

}  // namespace llr::cuda
