// torch.ops.llr.mlp_gram and gram_add_ on CUDA: K = J J' without J. All work is queued on the current stream;
// nothing waits for the device.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "gram/gram_arguments.h"
#include "common/mlp_arguments.h"
#include "common/cuda/device.h"
#include "signals/cuda/device_signals.h"
#include "gram.h"

namespace llr::cuda {
namespace {

constexpr int64_t scratch_bytes = int64_t(256) << 20;  // beyond what one parameter point takes

void gram_add(at::Tensor& K, const at::Tensor& delta, const at::Tensor& a, bool bias, bool weight) {
  const OnDevice guard(K);
  check_gram_add(K, delta, a);
  const int64_t rows = K.size(-1), positions = delta.size(1), outputs = delta.size(2), inputs = a.size(2);
  weight = weight && inputs > 0;
  if (rows == 0 || positions == 0 || outputs == 0 || !(weight || bias)) return;
  TORCH_CHECK(positions * std::max(outputs, inputs) <= most_signals, "gram_add_: delta of shape ", delta.sizes(),
              " or a of shape ", a.sizes(), " has more than ", most_signals, " numbers in a row");
  const at::Tensor d = readable("gram_add_", "delta", delta), signals = readable("gram_add_", "a", a);
  double* const high = K.mutable_data_ptr<double>();
  const GramLayer layer{d.const_data_ptr<double>(), signals.const_data_ptr<double>(), 0, 0,
                        static_cast<int>(positions), static_cast<int>(outputs), static_cast<int>(inputs), 1,
                        weight, bias};
  check(add_layer(high, K.dim() == 3 ? high + rows * rows : nullptr, 1, rows, layer, true, true, current_stream()),
        "gram_add_");
  if (!K.is_inference()) K.unsafeGetTensorImpl()->bump_version();  // for autograd
}

// K of some parameter points, from their signals.
void sum_layers(const MlpArguments& args, const DeviceSignals& signals, int64_t points, double* high, double* low) {
  const MlpLayout& layout = args.layout;
  const int end = layout.layers();
  const auto has_weight = [&](int l) { return layout.weight_column[l] != not_a_column; };
  const auto has_bias = [&](int l) { return layout.bias_column[l] != not_a_column; };
  int last = end - 1;
  while (!has_weight(last) && !has_bias(last)) --last;  // some layer has columns
  const int64_t outputs = layout.out(end - 1);
  bool add = false;
  for (int l = 0; l <= last; ++l) {
    if (!has_weight(l) && !has_bias(l)) continue;
    const GramLayer layer{l + 1 == end ? nullptr : signals.data() + signals.deltas(l),
                          signals.data() + signals.inputs(l),
                          args.samples * outputs * layout.out(l),
                          args.samples * layout.in(l),
                          1,
                          static_cast<int>(layout.out(l)),
                          static_cast<int>(layout.in(l)),
                          static_cast<int>(outputs),
                          has_weight(l),
                          has_bias(l)};
    check(add_layer(high, low, points, args.samples * outputs, layer, add, l == last, current_stream()), "mlp_gram");
    add = true;
  }
}

at::Tensor mlp_gram(const at::Tensor& x, at::TensorList weights,
                    const c10::List<std::optional<at::Tensor>>& biases, std::string_view activation,
                    at::OptionalIntArrayRef columns, bool double_double) {
  const OnDevice guard(x);
  const MlpArguments args = read_mlp_arguments("mlp_gram", x, weights, biases, activation, columns);
  at::Tensor K = empty_on(x, gram_sizes(args, double_double), at::kDouble);
  if (K.numel() == 0) return K;
  const at::AutoDispatchBelowADInplaceOrView below;
  const int64_t rows = args.samples * args.layout.widths.back(), part = K.numel() / (double_double ? 2 : 1);
  DeviceSignals signals("mlp_gram", args);
  const int64_t each = 8 * signals.numbers(args.samples);
  const int64_t at_once = std::clamp<int64_t>(scratch_bytes / each, 1, args.points);
  signals.allocate(at_once * args.samples);
  double* const high = K.mutable_data_ptr<double>();
  for (int64_t point = 0; point < args.points; point += at_once) {
    const int64_t points = std::min(at_once, args.points - point);
    signals.compute(point, points, 0, args.samples);
    double* const from = high + point * rows * rows;
    sum_layers(args, signals, points, from, double_double ? from + part : nullptr);
  }
  return K;
}

}  // namespace
}  // namespace llr::cuda

LLR_CUDA_LIBRARY(m) {
  m.impl("mlp_gram", &llr::cuda::mlp_gram);
  m.impl("gram_add_", &llr::cuda::gram_add);
}
