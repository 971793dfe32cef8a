// torch.ops.llr.mlp_gram and gram_add_ on the CPU.
//
// K = J J' without J: for a layer whose derivatives are outer products delta a', the inner product of two
// rows is (delta . delta) (a . a). So the cost depends on the widths, not on the number of parameters. K is
// divided into tiles; those on and below the diagonal are computed, each by one task.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string_view>
#include <tuple>
#include <vector>

#include "gram/gram_arguments.h"
#include "common/mlp_arguments.h"
#include "double_double.h"
#include "common/cpu/allocate.h"
#include "gram.h"
#include "common/cpu/interrupt.h"
#include "common/cpu/products.h"
#include "signals/cpu/signals.h"

namespace llr {
namespace {

constexpr int64_t block_samples = 128;

// Scratch of a task: two products of signals.
struct Tiles {
  alignas(64) std::array<double, tile * tile> d_high, d_low, a_high, a_low;
  alignas(64) std::array<double, product_scratch> packed;
};

// to (tile, tile) = rows columns'
void product(double* high, double* low, const double* rows, int64_t row_stride, const double* columns,
             int64_t column_stride, int64_t m, int64_t n, int64_t k, double* packed) {
  std::fill_n(high, tile * tile, 0.0);
  if (low == nullptr) {
    multiply_add(high, tile, rows, row_stride, columns, 1, column_stride, m, n, k);
    return;
  }
  std::fill_n(low, tile * tile, 0.0);
  constexpr int64_t at_once = 64 * depth_at_once;
  for (int64_t from = 0; from < k; from += at_once) {
    const int64_t depth = std::min(at_once, k - from);
    interruption_point(10 * m * n * depth);
    double_double_kernels().multiply_add(high, low, rows + from, row_stride, columns + from, column_stride, m, n, depth,
                                         packed);
  }
}

void accumulate(double* high, double* low, int64_t rows, const LayerSignals& layer, const Tiles& tiles,
                const int64_t* row_of, const int64_t* column_of, int64_t m, int64_t n) {
  const double bias = layer.bias ? 1.0 : 0.0;
  if (low != nullptr) {
    double_double_kernels().accumulate(high, low, rows, tiles.d_high.data(), tiles.d_low.data(),
                                       layer.weight ? tiles.a_high.data() : nullptr, tiles.a_low.data(),
                                       row_of, column_of, bias, m, n);
    return;
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const double a = layer.weight ? tiles.a_high[row_of[i] * tile + column_of[j]] : 0.0;
      high[i * rows + j] += tiles.d_high[i * tile + j] * (a + bias);
    }
  }
}

// The tile of rows [i, i + m) and columns [j, j + n).
void add_tile(double* high, double* low, int64_t rows, const LayerSignals& layer, int64_t i, int64_t j,
              int64_t m, int64_t n, Tiles& tiles) {
  std::array<int64_t, tile> row_of, column_of;  // rows of a within the tile
  const int64_t first_row = i / layer.sharing, first_column = j / layer.sharing;
  for (int64_t r = 0; r < m; ++r) row_of[r] = (i + r) / layer.sharing - first_row;
  for (int64_t r = 0; r < n; ++r) column_of[r] = (j + r) / layer.sharing - first_column;
  const int64_t delta_stride = layer.positions * layer.outputs, a_stride = layer.positions * layer.inputs;
  const bool plain = low == nullptr;
  for (int64_t t = 0; t < layer.positions; ++t) {
    for (int64_t s = 0; s < layer.positions; ++s) {
      interruption_point(tile * tile);
      product(tiles.d_high.data(), plain ? nullptr : tiles.d_low.data(),
              layer.delta + i * delta_stride + t * layer.outputs, delta_stride,
              layer.delta + j * delta_stride + s * layer.outputs, delta_stride, m, n, layer.outputs,
              tiles.packed.data());
      if (layer.weight) {
        product(tiles.a_high.data(), plain ? nullptr : tiles.a_low.data(),
                layer.a + first_row * a_stride + t * layer.inputs, a_stride,
                layer.a + first_column * a_stride + s * layer.inputs, a_stride, row_of[m - 1] + 1,
                column_of[n - 1] + 1, layer.inputs, tiles.packed.data());
      }
      accumulate(high + i * rows + j, plain ? nullptr : low + i * rows + j, rows, layer, tiles,
                 row_of.data(), column_of.data(), m, n);
    }
  }
}

// Copies the triangle below the diagonal of K (rows, rows) to the triangle above it.
void mirror(double* K, int64_t rows) {
  const int64_t bands = ceil_div(rows, tile);
  parallel_tasks(bands, rows * rows / 2, [&](int64_t band) {
    const int64_t last = std::min(rows, (band + 1) * tile);
    for (int64_t i = band * tile; i < last; ++i) {
      for (int64_t j = last; j < rows; ++j) K[i * rows + j] = K[j * rows + i];
      for (int64_t j = i + 1; j < last; ++j) K[i * rows + j] = K[j * rows + i];
    }
  });
}

void gram_add(at::Tensor& K, const at::Tensor& delta, const at::Tensor& a, bool bias, bool weight) {
  check_gram_add(K, delta, a);
  const int64_t rows = K.size(-1);
  if (rows == 0) return;
  const at::Tensor d = readable("gram_add_", "delta", delta), signals = readable("gram_add_", "a", a);
  double* const high = K.mutable_data_ptr<double>();
  add_layer(high, K.dim() == 3 ? high + rows * rows : nullptr, rows,
            {d.const_data_ptr<double>(), signals.const_data_ptr<double>(), d.size(1), d.size(2),
             signals.size(2), 1, weight, bias});
  if (!K.is_inference()) K.unsafeGetTensorImpl()->bump_version();  // for autograd
}

// `errors`, if not null: (points, samples, outputs), a bound of the error of each row of J.
template <typename T>
void mlp_gram_of(const MlpArguments& args, double* high, double* low, double* errors) {
  const MlpLayout& layout = args.layout;
  const int last = layout.layers() - 1;
  const int64_t outputs = layout.out(last), rows = args.samples * outputs;
  const auto counts = [&](int l, bool bias) {
    return (bias ? layout.bias_column : layout.weight_column)[l] != not_a_column;
  };
  Signals<T> signals(args, errors != nullptr);
  signals.allocate(args.samples, outputs);
  std::vector<double> unit(rows * outputs, 0.0);  // d output / d preactivation of the last layer
  for (int64_t r = 0; r < rows; ++r) unit[r * outputs + r % outputs] = 1.0;
  std::vector<Block> round;
  for (int64_t point = 0; point < args.points; ++point) {
    round.clear();
    for (int64_t s = 0; s < args.samples; s += block_samples) {
      round.push_back({point, s, std::min(block_samples, args.samples - s), s});
    }
    signals.forward(round);
    signals.backward(round, 0, outputs);
    if (errors != nullptr) {
      parallel_tasks(static_cast<int64_t>(round.size()), rows * layout.columns, [&](int64_t i) {
        signals.row_errors(round[i], outputs, errors + (point * args.samples + round[i].sample) * outputs);
      });
    }
    const int64_t offset = point * rows * rows;
    for (int l = 0; l <= last; ++l) {
      add_layer(high + offset, low == nullptr ? nullptr : low + offset, rows,
                {l == last ? unit.data() : signals.deltas(l), signals.inputs(l), 1, layout.out(l),
                 layout.in(l), outputs, counts(l, false), counts(l, true)});
    }
  }
}

at::Tensor compute_gram(const MlpArguments& args, bool double_double, double* errors) {
  const std::vector<int64_t> sizes = gram_sizes(args, double_double);
  check_result("mlp_gram", sizes, at::kDouble);
  at::Tensor K = at::zeros(sizes, at::TensorOptions(at::kDouble));
  if (K.numel() == 0) return K;
  double* const high = K.mutable_data_ptr<double>();
  double* const low = double_double ? high + K.numel() / 2 : nullptr;
  if (args.x.scalar_type() == at::kDouble) {
    mlp_gram_of<double>(args, high, low, errors);
  } else {
    mlp_gram_of<float>(args, high, low, errors);
  }
  return K;
}

at::Tensor mlp_gram(const at::Tensor& x, at::TensorList weights,
                    const c10::List<std::optional<at::Tensor>>& biases, std::string_view activation,
                    at::OptionalIntArrayRef columns, bool double_double) {
  const MlpArguments args = read_mlp_arguments("mlp_gram", x, weights, biases, activation, columns);
  return compute_gram(args, double_double, nullptr);
}

std::tuple<at::Tensor, at::Tensor> mlp_gram_with_error(const at::Tensor& x, at::TensorList weights,
                                                       const c10::List<std::optional<at::Tensor>>& biases,
                                                       std::string_view activation,
                                                       at::OptionalIntArrayRef columns, bool double_double) {
  const MlpArguments args = read_mlp_arguments("mlp_gram_with_error", x, weights, biases, activation, columns);
  const std::vector<int64_t> sizes = args.result_sizes();
  at::Tensor error = at::empty(at::IntArrayRef(sizes).slice(0, sizes.size() - 1), at::TensorOptions(at::kDouble));
  at::Tensor K = compute_gram(args, double_double, error.mutable_data_ptr<double>());
  return {K, error};
}

}  // namespace

void add_layer(double* high, double* low, int64_t rows, const LayerSignals& layer) {
  if (!layer.weight && !layer.bias) return;
  const int64_t bands = ceil_div(rows, tile), tasks = bands * (bands + 1) / 2;
  // In doubles: the square of many positions may overflow an int64_t.
  const auto positions = static_cast<double>(layer.positions);
  const auto terms = static_cast<double>(layer.outputs + (layer.weight ? layer.inputs : 0));
  const double work = static_cast<double>(rows * rows / 2) * positions * positions * terms * (low == nullptr ? 1 : 10);
  parallel_tasks(tasks, static_cast<int64_t>(std::min(work, 1e18)), [&](int64_t task) {
    int64_t band = 0;  // task = band (band + 1) / 2 + column
    while ((band + 1) * (band + 2) / 2 <= task) ++band;
    const int64_t i = band * tile, j = (task - band * (band + 1) / 2) * tile;
    const auto tiles = std::make_unique<Tiles>();
    add_tile(high, low, rows, layer, i, j, std::min(tile, rows - i), std::min(tile, rows - j), *tiles);
  });
  mirror(high, rows);
  if (low != nullptr) mirror(low, rows);
}

}  // namespace llr

TORCH_LIBRARY_IMPL(llr, CPU, m) {
  m.impl("mlp_gram", &llr::Interruptible<"mlp_gram", &llr::mlp_gram>::call);
  m.impl("mlp_gram_with_error", &llr::Interruptible<"mlp_gram_with_error", &llr::mlp_gram_with_error>::call);
  m.impl("gram_add_", &llr::Interruptible<"gram_add_", &llr::gram_add>::call);
}
