// The signals from which the derivatives of an MLP are computed, for blocks of samples: the inputs of each
// layer, the slopes of the activations, and the derivatives of the outputs with respect to the
// preactivations. All are in double for every dtype of the parameters. If asked for, bounds of their errors
// are computed too (error_signals.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/mlp_arguments.h"
#include "common/cpu/allocate.h"
#include "error_signals.h"
#include "common/cpu/kernels.h"
#include "common/cpu/products.h"

namespace llr {

template <typename T>
class Signals : public ErrorSignals<T> {
  using Base = ErrorSignals<T>;
  using Base::activation_errors, Base::allocate_errors, Base::args_, Base::backward_errors, Base::bias,
      Base::deltas_, Base::errors_, Base::forward_errors, Base::inputs_, Base::is_large, Base::layers_, Base::layout_,
      Base::load_errors, Base::measure_delta_feeds, Base::measure_feeds, Base::slopes_, Base::weight;

 public:
  explicit Signals(const MlpArguments& arguments, bool errors = false) : Base(arguments, errors) {}

  // Allocates memory for this many samples, with the derivatives of `chunk` outputs.
  void allocate(int64_t samples, int64_t chunk) {
    if (errors_) allocate_errors(samples, chunk);
    inputs_.resize(layers_);
    slopes_.resize(layers_);
    deltas_.resize(layers_);
    inputs_[0] = aligned_doubles(samples * layout_.in(0));
    for (int l = 1; l < layers_; ++l) {
      inputs_[l] = aligned_doubles(samples * layout_.in(l));
      slopes_[l] = aligned_doubles(samples * layout_.in(l));
      deltas_[l - 1] = aligned_doubles(samples * chunk * layout_.in(l));
    }
  }

  // The block's samples as doubles.
  void load(const Block& block) {
    const int64_t d = layout_.in(0);
    const int64_t from = (args_.x_batched ? block.point * args_.samples : 0) + block.sample;
    std::copy_n(args_.x.template const_data_ptr<T>() + from * d, block.count * d,
                inputs_[0].get() + block.slot * d);
    if (errors_) load_errors(block);
  }

  // Neurons [first, last) of layer l (a hidden one), for the samples of the block.
  void forward_piece(const Block& block, int l, int64_t first, int64_t last) {
    const MathKernels& math = math_kernels();
    const int64_t in = layout_.in(l), out = layout_.out(l), width = last - first;
    const T* b = bias(l, block.point);
    double* z = inputs_[l + 1].get() + block.slot * out + first;
    for (int64_t s = 0; s < block.count; ++s) {
      if (b != nullptr) {
        std::copy_n(b + first, width, z + s * out);
      } else {
        std::fill_n(z + s * out, width, 0.0);
      }
    }
    const Panel w(weight(l, block.point) + first * in, in, width, in);
    multiply_add(z, out, inputs_[l].get() + block.slot * in, in, w.data, 1, w.stride, block.count, width,
                 in);
    if (errors_) forward_errors(block, l, first, last);
    double* slope = slopes_[l + 1].get() + block.slot * out + first;
    if (width == out) {
      math.activate(args_.activation, z, slope, block.count * out);
    } else {
      for (int64_t s = 0; s < block.count; ++s) {
        math.activate(args_.activation, z + s * out, slope + s * out, width);
      }
    }
    if (errors_) activation_errors(block, l, first, last);
  }

  // d output / d z of neurons [first, last) of layer l - 1, from that of layer l, for `outputs` outputs
  // from output j on.
  void backward_piece(const Block& block, int l, int64_t first, int64_t last, int64_t j,
                      int64_t outputs) {
    const int64_t in = layout_.in(l), out = layout_.out(l), width = last - first;
    const int64_t rows = block.count * outputs;
    double* delta = deltas_[l - 1].get() + block.slot * outputs * in + first;
    if (l == layers_ - 1) {
      const T* w = weight(l, block.point) + j * in + first;
      for (int64_t r = 0; r < rows; ++r) std::copy_n(w + r % outputs * in, width, delta + r * in);
    } else {
      for (int64_t r = 0; r < rows; ++r) std::fill_n(delta + r * in, width, 0.0);
      const Panel w(weight(l, block.point) + first, in, out, width);
      multiply_add(delta, in, deltas_[l].get() + block.slot * outputs * out, out, w.data, w.stride, 1,
                   rows, width, out);
    }
    if (errors_) backward_errors(block, l, first, last, outputs);
    const double* slope = slopes_[l].get() + block.slot * in + first;
    for (int64_t r = 0; r < rows; ++r) {
      math_kernels().scale(delta + r * in, slope + r / outputs * in, width);
    }
  }

  // f(block, first neuron, last neuron) over all blocks and all `neurons` in pieces.
  template <typename F>
  void over_pieces(const std::vector<Block>& round, int64_t neurons, int64_t work, const F& f) {
    const int64_t pieces = ceil_div(neurons, piece_neurons);
    parallel_tasks(static_cast<int64_t>(round.size()) * pieces, work, [&](int64_t i) {
      const int64_t first = i % pieces * piece_neurons;
      f(round[i / pieces], first, std::min(first + piece_neurons, neurons));
    });
  }

  void forward(const std::vector<Block>& round) {
    const int64_t samples = samples_in(round);
    parallel_tasks(static_cast<int64_t>(round.size()), samples * layout_.in(0),
                   [&](int64_t i) { load(round[i]); });
    for (int l = 0; l + 1 < layers_; ++l) {
      if (errors_ && is_large(l)) {
        parallel_tasks(static_cast<int64_t>(round.size()), samples * layout_.in(l),
                       [&](int64_t i) { measure_feeds(round[i], l); });
      }
      over_pieces(round, layout_.out(l), samples * layout_.in(l) * layout_.out(l),
                  [&](const Block& b, int64_t first, int64_t last) { forward_piece(b, l, first, last); });
    }
  }

  void backward(const std::vector<Block>& round, int64_t j, int64_t outputs) {
    const int64_t samples = samples_in(round);
    for (int l = layers_ - 1; l >= 1; --l) {
      const int64_t terms = l == layers_ - 1 ? 1 : layout_.out(l);
      if (errors_ && terms > 1 && is_large(l)) {
        parallel_tasks(static_cast<int64_t>(round.size()), samples * outputs * terms,
                       [&](int64_t i) { measure_delta_feeds(round[i], l, outputs); });
      }
      over_pieces(round, layout_.in(l), samples * outputs * layout_.in(l) * terms,
                  [&](const Block& b, int64_t first, int64_t last) {
                    backward_piece(b, l, first, last, j, outputs);
                  });
    }
  }

 private:
  static int64_t samples_in(const std::vector<Block>& round) {
    int64_t samples = 0;
    for (const Block& b : round) samples += b.count;
    return samples;
  }
};

}  // namespace llr
