// The arrays of signals that the operators of MLPs share and, if asked for, bounds of their errors: the
// running error analysis of error_bound.h, done piece by piece together with the signals.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/mlp_arguments.h"
#include "common/cpu/allocate.h"
#include "error_bound.h"
#include "common/cpu/kernels.h"
#include "common/cpu/products.h"
#include "weight_norms.h"

namespace llr {

constexpr int64_t piece_neurons = 128;  // neurons that a task computes their signals for

// Samples [sample, sample + count) of a parameter point; their signals begin at row `slot` of the scratch
// arrays.
struct Block {
  int64_t point;
  int64_t sample;
  int64_t count;
  int64_t slot;
};

template <typename T>
class ErrorSignals {
 public:
  ErrorSignals(const MlpArguments& arguments, bool errors)
      : args_(arguments), layout_(arguments.layout), layers_(layout_.layers()), errors_(errors) {}

  // The inputs of layer l, in(l) numbers for each sample.
  const double* inputs(int l) const { return inputs_[l].get(); }

  // The derivatives of hidden layer l, out(l) numbers for each sample and output.
  const double* deltas(int l) const { return deltas_[l].get(); }

  // Bounds of the errors of a block's rows (`outputs` rows per sample): square roots of sums of squares over
  // the columns. They include the rounding of the entries to T.
  void row_errors(const Block& block, int64_t outputs, double* result) const {
    const ErrorKernels& kernels = error_kernels();
    constexpr bool single = std::is_same_v<T, float>;
    const double rounding = 2.0 * unit_roundoff + (single ? rounded_up * float_roundoff : 0.0);
    const double lost = single ? 4e-76 : least;  // of an entry that underflows, squared
    const int64_t rows = block.count * outputs;
    std::vector<double> scratch(2 * (block.count + rows));
    double *const e = scratch.data(), *const a = e + block.count, *const ed = a + block.count, *const d = ed + rows;
    std::fill_n(result, rows, static_cast<double>(2 * layers_) * least);
    for (int l = 0; l < layers_; ++l) {
      const bool weight = layout_.weight_column[l] != not_a_column, bias = layout_.bias_column[l] != not_a_column;
      const int64_t in = layout_.in(l), out = layout_.out(l);
      const double floor = static_cast<double>(in) * least, more = static_cast<double>(out) * least;
      const double *ea = input_errors(l) + block.slot * in, *fed = inputs(l) + block.slot * in;
      if (weight && l == 0 && layers_ > 1) {  // the samples have no errors
        kernels.squares(a, nullptr, ea, fed, 1.0, block.count, in);
        for (int64_t s = 0; s < block.count; ++s) e[s] = rounding * rounding * a[s];
      } else if (weight) {
        kernels.squares(e, l + 1 == layers_ ? nullptr : a, ea, fed, rounding, block.count, in);
      }
      if (l + 1 == layers_) {  // d is a unit vector
        for (int64_t r = 0; weight && r < rows; ++r) result[r] += e[r / outputs] + floor;
        continue;
      }
      if (!weight && !bias) continue;
      const int64_t at = block.slot * outputs * out;
      kernels.squares(ed, d, delta_errors(l) + at, deltas(l) + at, 0.0, rows, out);
      // (a + b)^2 <= 2 (a^2 + b^2). `floor` and `more` cover the underflow of squares.
      const double entries = 2.0 * static_cast<double>(in * out) * lost;
      const double stored = 2.0 * static_cast<double>(out) * lost;
      const auto add = [&](int64_t r, int64_t s) {
        const double errors = ed[r] + more, sizes = d[r] + more;
        double sum = result[r];
        if (weight) sum += 2.0 * (errors * (a[s] + floor) + sizes * (e[s] + floor)) + entries;
        if (bias) sum += single ? 2.0 * (errors + rounding * rounding * sizes) + stored : errors;
        result[r] = sum;
      };
      if (outputs == 1) {
        for (int64_t s = 0; s < block.count; ++s) add(s, s);
        continue;
      }
      for (int64_t s = 0, r = 0; s < block.count; ++s) {
        for (int64_t j = 0; j < outputs; ++j, ++r) add(r, s);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const double error = rounded_up * std::sqrt(result[r]);
      result[r] = error < std::numeric_limits<double>::infinity() ? error : std::numeric_limits<double>::infinity();
    }
  }

 protected:
  const T* weight(int layer, int64_t point) const {
    return args_.weights[layer].template const_data_ptr<T>() +
           (args_.weights_batched ? point * layout_.in(layer) * layout_.out(layer) : 0);
  }

  const T* bias(int layer, int64_t point) const {
    const at::Tensor& b = args_.biases[layer];
    if (!b.defined()) return nullptr;
    return b.template const_data_ptr<T>() + (args_.weights_batched ? point * layout_.out(layer) : 0);
  }

  void allocate_errors(int64_t samples, int64_t chunk) {
    int64_t count = 0;
    const auto take = [&](int64_t numbers) { return std::exchange(count, count + ceil_div(numbers, 8) * 8); };
    places_.resize(layers_);
    for (int l = 0; l < layers_; ++l) {
      const int64_t in = layout_.in(l);
      places_[l].input = take(samples * in);
      places_[l].feed = is_large(l) ? 0 : take(samples * in);
      if (l == 0) continue;
      places_[l].slope = take(samples * in);
      places_[l - 1].delta = take(samples * chunk * in);
      places_[l - 1].delta_feed = l > 1 && !is_large(l - 1) ? take(samples * chunk * in) : 0;
    }
    bounds_ = aligned_doubles(count);
    const int64_t points = args_.weights_batched ? args_.points : 1;
    norms_.clear();
    for (int l = 0; l < layers_; ++l) {
      if (!is_large(l)) continue;
      norms_.resize(points * layers_);
      feed_norms_.resize(samples);
      delta_norms_.resize(samples * chunk);
      parallel_tasks(points, points * layout_.in(l) * layout_.out(l), [&](int64_t point) {
        norms_[point * layers_ + l] = weight_norms(weight(l, point), layout_.out(l), layout_.in(l));
      });
    }
  }

  double* input_errors(int l) const { return bounds_.get() + places_[l].input; }
  double* feeds(int l) const { return bounds_.get() + places_[l].feed; }
  double* slope_errors(int l) const { return bounds_.get() + places_[l].slope; }
  double* delta_errors(int l) const { return bounds_.get() + places_[l].delta; }
  double* delta_feeds(int l) const { return bounds_.get() + places_[l].delta_feed; }

  // Whether products with |W| would take noticeable time: then norms bound them.
  bool is_large(int l) const {
    return l + 1 < layers_ && layout_.in(l) > 32 && layout_.in(l) * layout_.out(l) >= 2048;
  }

  const WeightNorms& norms(int l, int64_t point) const {
    return norms_[(args_.weights_batched ? point : 0) * layers_ + l];
  }

  // A bound of the relative rounding error of a sum of this many products and a bias.
  static double rounding_of(int64_t terms) { return static_cast<double>(terms + 2) * unit_roundoff; }

  // f(offset, count) over neurons [first, first + width) of `rows` rows of `all` neurons: one call if these
  // are all neurons, else one per row.
  template <typename F>
  static void over_rows(int64_t rows, int64_t all, int64_t first, int64_t width, const F& f) {
    if (width == all) {
      f(0, rows * all);
    } else {
      for (int64_t r = 0; r < rows; ++r) f(r * all + first, width);
    }
  }

  // The samples have no errors.
  void load_errors(const Block& block) {
    const int64_t d = layout_.in(0), at = block.slot * d, count = block.count * d;
    std::fill_n(input_errors(0) + at, count, 0.0);
    if (is_large(0)) return;
    error_kernels().feed(feeds(0) + at, input_errors(0) + at, inputs(0) + at, rounding_of(d), count);
  }

  // The magnitudes of a piece of a weight matrix.
  static std::vector<double> magnitudes(const T* w, int64_t stride, int64_t rows, int64_t columns) {
    std::vector<double> copy(rows * columns);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) copy[i * columns + j] = detail::magnitude(w[i * stride + j]);
    }
    return copy;
  }

  // The errors of the preactivations, and a copy of the preactivations, which the activation overwrites.
  void forward_errors(const Block& block, int l, int64_t first, int64_t last) {
    const ErrorKernels& kernels = error_kernels();
    const int64_t in = layout_.in(l), out = layout_.out(l), width = last - first;
    const T* b = bias(l, block.point);
    const double* z = inputs(l + 1) + block.slot * out;
    double* e = input_errors(l + 1) + block.slot * out;
    std::vector<double> start(width, static_cast<double>(in + 2) * least);
    if (b != nullptr) {
      for (int64_t i = 0; i < width; ++i) start[i] += rounding_of(in) * detail::magnitude(b[first + i]);
    }
    if (width == out) {  // few large copies: a call for each short row would take noticeable time
      std::copy_n(start.data(), out, e);
      for (int64_t rows = 1; rows < block.count; rows *= 2) {
        std::copy_n(e, std::min(rows, block.count - rows) * out, e + rows * out);
      }
    } else {
      for (int64_t s = 0; s < block.count; ++s) std::copy_n(start.data(), width, e + s * out + first);
    }
    if (is_large(l)) {
      if (width == out) measure_feeds(block, l);
      const WeightNorms& n = norms(l, block.point);
      for (int64_t s = 0; s < block.count; ++s) {
        kernels.add_magnitudes(e + s * out + first, n.row.data() + first, feed_norms_[block.slot + s], width);
      }
    } else {
      const std::vector<double> w = magnitudes(weight(l, block.point) + first * in, in, width, in);
      multiply_add(e + first, out, feeds(l) + block.slot * in, in, w.data(), 1, in, block.count, width, in);
    }
    if (args_.activation == Activation::relu) {
      for (int64_t s = 0; s < block.count; ++s) {
        const int64_t at = (block.slot + s) * in;
        spare_zeros(block, l, first, width, z + s * out + first, e + s * out + first, inputs(l) + at,
                    input_errors(l) + at);
      }
    }
    double* kept = slope_errors(l + 1) + block.slot * out;
    over_rows(block.count, out, first, width,
              [&](int64_t at, int64_t count) { std::copy_n(z + at, count, kept + at); });
  }

  // The norms that replace products with a large |W|: computed once for all pieces of its neurons.
  void measure_feeds(const Block& block, int l) {
    const std::vector<double>& unit = norms(l, block.point).column_unit;
    for (int64_t s = block.slot; s < block.slot + block.count; ++s) {
      const int64_t in = layout_.in(l);
      feed_norms_[s] = norm_of(unit, input_errors(l) + s * in, inputs(l) + s * in, in);
    }
  }

  void measure_delta_feeds(const Block& block, int l, int64_t outputs) {
    const std::vector<double>& unit = norms(l, block.point).row_unit;
    const int64_t first = block.slot * outputs;
    for (int64_t r = first; r < first + block.count * outputs; ++r) {
      const int64_t out = layout_.out(l);
      delta_norms_[r] = norm_of(unit, delta_errors(l) + r * out, deltas(l) + r * out, out);
    }
  }

  static double norm_of(const std::vector<double>& unit, const double* e, const double* a, int64_t count) {
    const double squares = error_kernels().fed_squares(unit.data(), e, a, rounding_of(count), count);
    return rounded_up * std::sqrt(squares + static_cast<double>(count) * least);
  }

  // A sum of zeros is exactly zero: it has no error, and is on the right side of ReLU's kink.
  void spare_zeros(const Block& block, int l, int64_t first, int64_t width, const double* z, double* e,
                   const double* a, const double* ea) const {
    const int64_t in = layout_.in(l);
    const T *w = weight(l, block.point), *b = bias(l, block.point);
    for (int64_t i = 0; i < width; ++i) {
      if (z[i] != 0.0 || (b != nullptr && b[first + i] != T(0))) continue;
      const T* row = w + (first + i) * in;
      bool zero = true;
      for (int64_t j = 0; j < in && zero; ++j) zero = row[j] == T(0) || (a[j] == 0.0 && ea[j] == 0.0);
      if (zero) e[i] = 0.0;
    }
  }

  void activation_errors(const Block& block, int l, int64_t first, int64_t last) {
    const int64_t out = layout_.out(l), start = block.slot * out;
    const bool feeds_product = l + 2 < layers_ && !is_large(l + 1);
    over_rows(block.count, out, first, last - first, [&](int64_t offset, int64_t count) {
      const int64_t at = start + offset;
      error_kernels().activation(args_.activation, input_errors(l + 1) + at, slope_errors(l + 1) + at,
                                 feeds_product ? feeds(l + 1) + at : nullptr, inputs(l + 1) + at,
                                 slopes_[l + 1].get() + at, rounding_of(out), count);
    });
  }

  // The errors of the derivatives. To be called before these are multiplied by the slopes.
  void backward_errors(const Block& block, int l, int64_t first, int64_t last, int64_t outputs) {
    const ErrorKernels& kernels = error_kernels();
    const int64_t in = layout_.in(l), out = layout_.out(l), width = last - first;
    const int64_t rows = block.count * outputs;
    const int64_t start = block.slot * outputs * in;
    double* e = delta_errors(l - 1) + start + first;
    const bool exact = l == layers_ - 1;  // a row of the last weight matrix
    if (!exact) {
      for (int64_t r = 0; r < rows; ++r) std::fill_n(e + r * in, width, static_cast<double>(out + 2) * least);
      if (is_large(l)) {
        if (width == in) measure_delta_feeds(block, l, outputs);
        const WeightNorms& n = norms(l, block.point);
        const double* sizes = delta_norms_.data() + block.slot * outputs;
        for (int64_t r = 0; r < rows; ++r) {
          kernels.add_magnitudes(e + r * in, n.column.data() + first, sizes[r], width);
        }
      } else {
        const std::vector<double> w = magnitudes(weight(l, block.point) + first, in, out, width);
        multiply_add(e, in, delta_feeds(l) + block.slot * outputs * out, out, w.data(), width, 1, rows, width, out);
      }
    }
    const double *t = deltas(l - 1) + start, *g = slopes_[l].get() + block.slot * in;
    const double* eg = slope_errors(l) + block.slot * in;
    double* const errors = delta_errors(l - 1) + start;
    double* const next = l > 1 && !is_large(l - 1) ? delta_feeds(l - 1) + start : nullptr;
    const auto step = [&](int64_t at, int64_t of, int64_t count) {
      kernels.slope(errors + at, next == nullptr ? nullptr : next + at, t + at, g + of, eg + of, rounding_of(in), exact,
                    count);
    };
    if (outputs == 1) {
      over_rows(rows, in, first, width, [&](int64_t at, int64_t count) { step(at, at, count); });
    } else {
      for (int64_t r = 0; r < rows; ++r) step(r * in + first, r / outputs * in + first, width);
    }
  }

  const MlpArguments& args_;
  const MlpLayout& layout_;
  const int layers_;
  const bool errors_;
  std::vector<AlignedDoubles> inputs_;  // inputs_[l] (samples, in(l))
  std::vector<AlignedDoubles> slopes_;  // slopes_[l] (samples, in(l)): sigma' of the layer before
  std::vector<AlignedDoubles> deltas_;  // deltas_[l] (samples, chunk, out(l))
  // Where each part of `bounds_` begins: error bounds, and the operands of products with |W| (`feed`).
  struct Places {
    int64_t input, feed, slope, delta, delta_feed;
  };
  std::vector<Places> places_;
  AlignedDoubles bounds_;
  std::vector<WeightNorms> norms_;                 // of large layers, per point
  std::vector<double> feed_norms_, delta_norms_;  // of the current layer
};

}  // namespace llr
