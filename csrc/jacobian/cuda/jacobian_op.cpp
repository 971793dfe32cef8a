// torch.ops.llr.mlp_jacobian on CUDA.
//
// Writing the result limits the speed. A small net is computed completely in a block's shared memory, some
// samples at a time. For a wider net, torch's matrix products compute the signals of as many samples as fit
// scratch_bytes, and the rows are written from there. All work is queued on the current stream and nothing
// waits for the device. Memory is allocated before anything is written.
#include <torch/library.h>

#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

#include "common/mlp_arguments.h"
#include "common/cuda/device.h"
#include "signals/cuda/device_signals.h"
#include "jacobian.h"

namespace llr::cuda {
namespace {

constexpr int64_t scratch_bytes = int64_t(256) << 20;
constexpr int64_t most_rows = int64_t(1) << 30;  // of a launch: rows are counted in 32 bits

// A tensor that is a column of the result, in order of the columns.
struct Place {
  int64_t column;
  int layer;
  bool bias;
};

std::vector<Place> places_of(const MlpLayout& layout) {
  std::vector<Place> places;
  for (int l = 0; l < layout.layers(); ++l) {
    if (layout.weight_column[l] != not_a_column) places.push_back({layout.weight_column[l], l, false});
    if (layout.bias_column[l] != not_a_column) places.push_back({layout.bias_column[l], l, true});
  }
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.column < b.column; });
  return places;
}

template <typename T>
class Jacobian {
 public:
  Jacobian(const MlpArguments& args, T* result)
      : args_(args), layout_(args.layout), layers_(layout_.layers()), result_(result), places_(places_of(layout_)) {
    for (const int64_t width : layout_.widths) {
      TORCH_CHECK(width <= most_signals, "mlp_jacobian: a layer is ", width, " wide; on a GPU at most ", most_signals);
    }
  }

  void run() {
    if (fits_a_block(layout_.widths.data(), layers_, static_cast<int>(places_.size()), args_.samples)) {
      whole();
    } else {
      in_pieces();
    }
  }

 private:
  int64_t outputs() const { return layout_.out(layers_ - 1); }

  Segment segment(const Place& place, int64_t origin) const {
    const bool last = place.layer + 1 == layers_;
    const int64_t in = layout_.in(place.layer), out = layout_.out(place.layer);
    return {place.column - origin, out, place.bias ? 1 : static_cast<int>(in), 0,
            place.bias ? 0 : static_cast<int>(in), 0, last ? 0 : static_cast<int>(out)};
  }

  // The columns of places [first, last), for rows from `row` on.
  Rows<T> rows(int64_t row, size_t first, size_t last) const {
    const int64_t origin = places_[first].column;
    const int64_t end = last < places_.size() ? places_[last].column : layout_.columns;
    Rows<T> rows{};
    rows.first = result_ + row * layout_.columns + origin;
    rows.pitch = layout_.columns;
    rows.columns = end - origin;
    rows.outputs = static_cast<int>(outputs());
    rows.segments = static_cast<int>(last - first);
    for (size_t p = first; p < last; ++p) rows.segment[p - first] = segment(places_[p], origin);
    return rows;
  }

  void whole() {
    Net<T> net{};
    net.rows = rows(0, 0, places_.size());
    for (size_t p = 0; p < places_.size(); ++p) {
      net.layer_of[p] = places_[p].layer;
      net.bias[p] = places_[p].bias;
    }
    net.x = args_.x.template const_data_ptr<T>();
    net.x_stride = args_.x_batched ? args_.samples * layout_.in(0) : 0;
    net.samples = args_.samples;
    net.activation = args_.activation;
    net.layers = layers_;
    for (int l = 0; l < layers_; ++l) {
      const int64_t in = layout_.in(l), out = layout_.out(l);
      const at::Tensor& b = args_.biases[l];
      net.layer[l] = {args_.weights[l].template const_data_ptr<T>(),
                      b.defined() ? b.template const_data_ptr<T>() : nullptr,
                      args_.weights_batched ? in * out : 0,
                      args_.weights_batched ? out : 0,
                      static_cast<int>(in),
                      static_cast<int>(out)};
    }
    // A launch has less than 2^31 blocks, and at least one per point.
    for (int64_t point = 0; point < args_.points; point += most_rows) {
      Net<T> some = net;
      some.points = std::min(most_rows, args_.points - point);
      some.rows.first += point * args_.samples * outputs() * layout_.columns;
      some.x += point * net.x_stride;
      for (int l = 0; l < layers_; ++l) {
        some.layer[l].weight += point * net.layer[l].weight_stride;
        if (some.layer[l].bias != nullptr) some.layer[l].bias += point * net.layer[l].bias_stride;
      }
      check(whole_net(some, current_stream()), "mlp_jacobian");
    }
  }

  void in_pieces() {
    DeviceSignals signals("mlp_jacobian", args_);
    const int64_t each = signals.numbers(1) - signals.numbers(0);
    const int64_t at_once =
        std::max<int64_t>(1, std::min(scratch_bytes / (8 * each), most_rows / outputs()));
    const int64_t samples = std::min(at_once, args_.samples);
    const int64_t points = std::clamp<int64_t>(at_once / args_.samples, 1, args_.points);
    signals.allocate(points * samples);
    for (int64_t point = 0; point < args_.points; point += points) {
      const int64_t some_points = std::min(points, args_.points - point);
      for (int64_t sample = 0; sample < args_.samples; sample += samples) {
        const int64_t some_samples = std::min(samples, args_.samples - sample);
        signals.compute(point, some_points, sample, some_samples);
        write(signals, (point * args_.samples + sample) * outputs(), some_points * some_samples * outputs());
      }
    }
  }

  void write(const DeviceSignals& signals, int64_t row, int64_t count) {
    for (size_t first = 0; first < places_.size(); first += most_segments) {
      const size_t last = std::min(first + most_segments, places_.size());
      Rows<T> some = rows(row, first, last);
      for (size_t p = first; p < last; ++p) {
        Segment& s = some.segment[p - first];
        const Place& place = places_[p];
        if (!place.bias) s.a = signals.inputs(place.layer);
        if (place.layer + 1 < layers_) s.delta = signals.deltas(place.layer);
      }
      check(write_rows(some, signals.data(), count, current_stream()), "mlp_jacobian");
    }
  }

  const MlpArguments& args_;
  const MlpLayout& layout_;
  const int layers_;
  T* const result_;
  const std::vector<Place> places_;
};

void compute(const MlpArguments& args, at::Tensor& result) {
  if (result.numel() == 0) return;
  const at::AutoDispatchBelowADInplaceOrView guard;
  if (result.scalar_type() == at::kDouble) {
    Jacobian<double>(args, result.mutable_data_ptr<double>()).run();
  } else {
    Jacobian<float>(args, result.mutable_data_ptr<float>()).run();
  }
}

at::Tensor mlp_jacobian(const at::Tensor& x, at::TensorList weights,
                        const c10::List<std::optional<at::Tensor>>& biases, std::string_view activation,
                        at::OptionalIntArrayRef columns) {
  const OnDevice guard(x);
  const MlpArguments args = read_mlp_arguments("mlp_jacobian", x, weights, biases, activation, columns);
  at::Tensor result = empty_on(x, args.result_sizes(), x.scalar_type());
  compute(args, result);
  return result;
}

void mlp_jacobian_out(const at::Tensor& x, at::TensorList weights,
                      const c10::List<std::optional<at::Tensor>>& biases, std::string_view activation,
                      at::OptionalIntArrayRef columns, at::Tensor& out) {
  const OnDevice guard(x);
  const MlpArguments args = read_mlp_arguments("mlp_jacobian", x, weights, biases, activation, columns);
  check_out("mlp_jacobian", out, args, x, weights);
  if (is_writable(out)) {
    compute(args, out);
  } else {
    at::Tensor result = empty_on(x, args.result_sizes(), x.scalar_type());
    compute(args, result);
    out.copy_(result);
  }
  // What autograd has saved of it is no longer valid.
  if (!out.is_inference()) out.unsafeGetTensorImpl()->bump_version();
}

}  // namespace
}  // namespace llr::cuda

LLR_CUDA_LIBRARY(m) {
  m.impl("mlp_jacobian", &llr::cuda::mlp_jacobian);
  m.impl("mlp_jacobian.out", &llr::cuda::mlp_jacobian_out);
}
