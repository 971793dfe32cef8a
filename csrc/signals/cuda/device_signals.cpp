#include "device_signals.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/mm.h>

namespace llr::cuda {

DeviceSignals::DeviceSignals(const char* op, const MlpArguments& arguments) : op_(op), args_(arguments) {
  for (int l = 0; l < layers(); ++l) {
    const at::Tensor &w = args_.weights[l], &b = args_.biases[l];
    // No derivative depends on the last layer's bias.
    const bool used = b.defined() && l + 1 < layers();
    weights_.push_back((args_.weights_batched ? w : w.unsqueeze(0)).to(at::kDouble));
    biases_.emplace_back();
    if (used) biases_.back() = (args_.weights_batched ? b : b.unsqueeze(0)).unsqueeze(1).to(at::kDouble);
  }
}

int64_t DeviceSignals::numbers(int64_t samples) const {
  int64_t hidden = 0;
  for (int l = 1; l < layers(); ++l) hidden += args_.layout.in(l);
  return 2 + samples * (args_.layout.in(0) + (2 + outputs()) * hidden);
}

void DeviceSignals::allocate(int64_t samples) {
  const int64_t count = numbers(samples);
  TORCH_CHECK(count <= most_signals, op_, ": the signals of ", samples, " samples are ", count,
              " numbers; on a GPU at most ", most_signals, " are possible: take fewer samples");
  scratch_ = empty_on(args_.x, {count}, at::kDouble);
  scratch_.narrow(0, 0, 2).fill_(1.0);
  int64_t next = 2;
  const auto place = [&](int64_t width) {
    const int64_t begin = next;
    next += samples * width;
    return begin;
  };
  inputs_.assign(layers(), 0);
  slopes_.assign(layers(), 0);
  deltas_.assign(layers(), 0);
  inputs_[0] = place(args_.layout.in(0));
  for (int l = 1; l < layers(); ++l) {
    inputs_[l] = place(args_.layout.in(l));
    slopes_[l] = place(args_.layout.in(l));
    deltas_[l - 1] = place(outputs() * args_.layout.in(l));
  }
}

void DeviceSignals::compute(int64_t point, int64_t points, int64_t sample, int64_t samples) {
  const at::Tensor x = args_.x_batched ? args_.x.narrow(0, point, points) : args_.x.unsqueeze(0);
  part(inputs_[0], points, samples, args_.layout.in(0)).copy_(x.narrow(1, sample, samples));
  for (int l = 0; l + 1 < layers(); ++l) forward(l, point, points, samples);
  for (int l = layers() - 1; l >= 1; --l) backward(l, point, points, samples);
}

at::Tensor DeviceSignals::part(int64_t begin, int64_t points, int64_t rows, int64_t columns) const {
  return scratch_.narrow(0, begin, points * rows * columns).view({points, rows, columns});
}

at::Tensor DeviceSignals::weight(int l, int64_t point, int64_t points) const {
  return args_.weights_batched ? weights_[l].narrow(0, point, points) : weights_[l];
}

void DeviceSignals::forward(int l, int64_t point, int64_t points, int64_t samples) {
  const int64_t in = args_.layout.in(l), out = args_.layout.out(l);
  const at::Tensor a = part(inputs_[l], points, samples, in), w = weight(l, point, points);
  at::Tensor z = part(inputs_[l + 1], points, samples, out);
  const at::Tensor& bias = biases_[l];
  if (args_.weights_batched) {
    if (bias.defined()) {
      at::baddbmm_out(z, bias.narrow(0, point, points), a, w.mT());
    } else {
      at::bmm_out(z, a, w.mT());
    }
  } else {
    at::Tensor rows = z.view({points * samples, out});
    if (bias.defined()) {
      at::addmm_out(rows, bias[0], a.view({points * samples, in}), w[0].t());
    } else {
      at::mm_out(rows, a.view({points * samples, in}), w[0].t());
    }
  }
  check(activate(args_.activation, z.mutable_data_ptr<double>(),
                 scratch_.mutable_data_ptr<double>() + slopes_[l + 1], points * samples * out,
                 current_stream()),
        op_);
}

// d outputs / d preactivations of layer l - 1
void DeviceSignals::backward(int l, int64_t point, int64_t points, int64_t samples) {
  const int64_t in = args_.layout.in(l), out = args_.layout.out(l), total = points * samples;
  at::Tensor deltas = part(deltas_[l - 1], points, samples * outputs(), in);
  const double* const slopes = scratch_.const_data_ptr<double>() + slopes_[l];
  const at::Tensor w = weight(l, point, points);
  if (l == layers() - 1) {
    check(first_deltas(deltas.mutable_data_ptr<double>(), w.const_data_ptr<double>(),
                       args_.weights_batched ? in * out : 0, samples, slopes, total, outputs(), in,
                       current_stream()),
          op_);
    return;
  }
  const at::Tensor above = part(deltas_[l], points, samples * outputs(), out);
  if (args_.weights_batched) {
    at::bmm_out(deltas, above, w);
  } else {
    at::Tensor rows = deltas.view({total * outputs(), in});
    at::mm_out(rows, above.view({total * outputs(), out}), w[0]);
  }
  check(scale_deltas(deltas.mutable_data_ptr<double>(), slopes, total, outputs(), in, current_stream()), op_);
}

}  // namespace llr::cuda
