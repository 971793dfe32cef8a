// The arrays of signals that the operators of MLPs share, and beside them, if asked for, bounds of how far they are from
// the exact numbers: the running error analysis of error_bound.h, piece by piece as the signals are computed.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../mlp_arguments.h"
#include "allocate.h"
#include "error_bound.h"
#include "kernels.h"
#include "products.h"
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

  // What layer l is fed, in(l) numbers for each sample.
  const double* inputs(int l) const { return inputs_[l].get(); }

  // Of a hidden layer l, out(l) numbers for each sample and output.
  const double* deltas(int l) const { return deltas_[l].get(); }

  // A bound of the error of the row of a sample (in its slot, of `outputs` outputs the j-th): the root of the sum of
  // squares over its columns. `written` as a T, the entries have the rounding of that type as well.
  double row_error(int64_t slot, int64_t j, int64_t outputs) const {
    const ErrorKernels& kernels = error_kernels();
    constexpr bool single = std::is_same_v<T, float>;
    const double rounding = 2.0 * unit_roundoff + (single ? rounded_up * float_roundoff : 0.0);
    const double lost = single ? 2e-38 : least;  // by an entry that underflows
    double total = 0.0;
    for (int l = 0; l < layers_; ++l) {
      const bool weight = layout_.weight_column[l] != not_a_column, bias = layout_.bias_column[l] != not_a_column;
      if (!weight && !bias) continue;
      const int64_t in = layout_.in(l), out = layout_.out(l);
      const double floor = static_cast<double>(in) * least;  // what squares lose
      double e = 0.0, a = 0.0;
      if (weight) {
        const double *errors = input_errors_[l].get() + slot * in, *values = inputs(l) + slot * in;
        e = std::sqrt(kernels.squares(errors, values, rounding, in) + floor);
        a = l + 1 < layers_ ? std::sqrt(kernels.squares(errors, values, 1.0, in) + floor) : 0.0;
      }
      if (l + 1 == layers_) {  // d is a unit vector
        if (weight) total += e * e;
        continue;
      }
      const int64_t row = (slot * outputs + j) * out;
      const double *errors = delta_errors_[l].get() + row, *values = deltas(l) + row;
      const double more = static_cast<double>(out) * least;
      const double ed = std::sqrt(kernels.squares(errors, values, 0.0, out) + more);
      const double d = std::sqrt(kernels.squares(errors, values, 1.0, out) + more);
      if (weight) {
        const double part = ed * a + d * e + std::sqrt(static_cast<double>(in * out)) * lost;
        total += part * part;
      }
      if (bias) {
        const double part = ed + (single ? rounding * d : 0.0) + std::sqrt(static_cast<double>(out)) * lost;
        total += part * part;
      }
    }
    const double error = rounded_up * std::sqrt(total + static_cast<double>(2 * layers_) * least);
    return error < std::numeric_limits<double>::infinity() ? error : std::numeric_limits<double>::infinity();
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
    input_errors_.resize(layers_);
    feeds_.resize(layers_);
    slope_errors_.resize(layers_);
    delta_errors_.resize(layers_);
    delta_feeds_.resize(layers_);
    for (int l = 0; l < layers_; ++l) {
      const int64_t in = layout_.in(l);
      input_errors_[l] = aligned_doubles(samples * in);
      feeds_[l] = aligned_doubles(samples * in);
      if (l == 0) continue;
      slope_errors_[l] = aligned_doubles(samples * in);
      delta_errors_[l - 1] = aligned_doubles(samples * chunk * in);
      delta_feeds_[l - 1] = aligned_doubles(samples * chunk * in);
    }
    const int64_t points = args_.weights_batched ? args_.points : 1;
    norms_.resize(points * layers_);
    parallel_tasks(points * layers_, points * layout_.columns, [&](int64_t i) {
      const int l = static_cast<int>(i % layers_);
      if (is_large(l)) norms_[i] = weight_norms(weight(l, i / layers_), layout_.out(l), layout_.in(l));
    });
  }

  // Whether products with |W| would show in the time: then norms bound them.
  bool is_large(int l) const {
    return l + 1 < layers_ && layout_.in(l) > 32 && layout_.in(l) * layout_.out(l) > 4096;
  }

  const WeightNorms& norms(int l, int64_t point) const {
    return norms_[(args_.weights_batched ? point : 0) * layers_ + l];
  }

  // Of a sum of so many terms and one more.
  static double rounding_of(int64_t terms) { return static_cast<double>(terms + 2) * unit_roundoff; }

  // What layer l is fed, neurons [first, last), as its products take it.
  void feed(int l, const Block& block, int64_t first, int64_t last) {
    const int64_t in = layout_.in(l);
    for (int64_t s = block.slot; s < block.slot + block.count; ++s) {
      error_kernels().feed(feeds_[l].get() + s * in + first, input_errors_[l].get() + s * in + first,
                           inputs(l) + s * in + first, rounding_of(in), last - first);
    }
  }

  // The magnitudes of a piece of a weight matrix.
  static std::vector<double> magnitudes(const T* w, int64_t stride, int64_t rows, int64_t columns) {
    std::vector<double> copy(rows * columns);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) copy[i * columns + j] = detail::magnitude(w[i * stride + j]);
    }
    return copy;
  }

  // The errors of the preactivations, and these themselves beside them, before the activation overwrites them.
  void forward_errors(const Block& block, int l, int64_t first, int64_t last) {
    const ErrorKernels& kernels = error_kernels();
    const int64_t in = layout_.in(l), out = layout_.out(l), width = last - first;
    const T* b = bias(l, block.point);
    const double* z = inputs_[l + 1].get() + block.slot * out + first;
    double* e = input_errors_[l + 1].get() + block.slot * out + first;
    const double* v = feeds_[l].get() + block.slot * in;
    const std::vector<double> offset = b == nullptr ? std::vector<double>() : magnitudes(b + first, width, 1, width);
    for (int64_t s = 0; s < block.count; ++s) {
      std::fill_n(e + s * out, width, static_cast<double>(in + 2) * least);
      if (b != nullptr) kernels.add_magnitudes(e + s * out, offset.data(), rounding_of(in), width);
    }
    if (is_large(l)) {
      const WeightNorms& n = norms(l, block.point);
      for (int64_t s = 0; s < block.count; ++s) {
        const double size = norm_of(n.column_unit, v + s * in, in);
        kernels.add_magnitudes(e + s * out, n.row.data() + first, size, width);
      }
    } else {
      const std::vector<double> w = magnitudes(weight(l, block.point) + first * in, in, width, in);
      multiply_add(e, out, v, in, w.data(), 1, in, block.count, width, in);
    }
    if (args_.activation == Activation::relu) {
      for (int64_t s = 0; s < block.count; ++s) spare_zeros(block, l, first, width, z + s * out, e + s * out, v + s * in);
    }
    double* kept = slope_errors_[l + 1].get() + block.slot * out + first;
    for (int64_t s = 0; s < block.count; ++s) std::copy_n(z + s * out, width, kept + s * out);
  }

  static double norm_of(const std::vector<double>& unit, const double* v, int64_t count) {
    return rounded_up * std::sqrt(error_kernels().scaled_squares(unit.data(), v, count) +
                                  static_cast<double>(count) * least);
  }

  // A sum of nothing but zeros is exactly zero, and stays on its side of ReLU's kink.
  void spare_zeros(const Block& block, int l, int64_t first, int64_t width, const double* z, double* e,
                   const double* v) const {
    const int64_t in = layout_.in(l);
    const T *w = weight(l, block.point), *b = bias(l, block.point);
    for (int64_t i = 0; i < width; ++i) {
      if (z[i] != 0.0 || (b != nullptr && b[first + i] != T(0))) continue;
      const T* row = w + (first + i) * in;
      bool zero = true;
      for (int64_t j = 0; j < in && zero; ++j) zero = row[j] == T(0) || v[j] == 0.0;
      if (zero) e[i] = 0.0;
    }
  }

  void activation_errors(const Block& block, int l, int64_t first, int64_t last) {
    const int64_t out = layout_.out(l), width = last - first;
    for (int64_t s = 0; s < block.count; ++s) {
      const int64_t at = (block.slot + s) * out + first;
      error_kernels().activation(args_.activation, input_errors_[l + 1].get() + at, slope_errors_[l + 1].get() + at,
                                 inputs(l + 1) + at, slopes_[l + 1].get() + at, width);
    }
    feed(l + 1, block, first, last);
  }

  // The errors of the derivatives, which are not yet multiplied by the slopes.
  void backward_errors(const Block& block, int l, int64_t first, int64_t last, int64_t outputs) {
    const ErrorKernels& kernels = error_kernels();
    const int64_t in = layout_.in(l), out = layout_.out(l), width = last - first;
    const int64_t rows = block.count * outputs;
    const double* t = deltas_[l - 1].get() + block.slot * outputs * in + first;
    double* e = delta_errors_[l - 1].get() + block.slot * outputs * in + first;
    const bool exact = l == layers_ - 1;  // a row of the last weight matrix
    for (int64_t r = 0; r < rows; ++r) {
      std::fill_n(e + r * in, width, exact ? 0.0 : static_cast<double>(out + 2) * least);
    }
    if (!exact) {
      const double* v = delta_feeds_[l].get() + block.slot * outputs * out;
      if (is_large(l)) {
        const WeightNorms& n = norms(l, block.point);
        for (int64_t r = 0; r < rows; ++r) {
          kernels.add_magnitudes(e + r * in, n.column.data() + first, norm_of(n.row_unit, v + r * out, out), width);
        }
      } else {
        const std::vector<double> w = magnitudes(weight(l, block.point) + first, in, out, width);
        multiply_add(e, in, v, out, w.data(), width, 1, rows, width, out);
      }
    }
    const double* slope = slopes_[l].get() + block.slot * in + first;
    const double* eg = slope_errors_[l].get() + block.slot * in + first;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t s = r / outputs * in;
      kernels.slope(e + r * in, t + r * in, slope + s, eg + s, width);
    }
  }

  void delta_feed(const Block& block, int l, int64_t first, int64_t last, int64_t outputs) {
    const int64_t in = layout_.in(l), rows = block.count * outputs, from = block.slot * outputs;
    for (int64_t r = from; r < from + rows; ++r) {
      const int64_t at = r * in + first;
      error_kernels().feed(delta_feeds_[l - 1].get() + at, delta_errors_[l - 1].get() + at, deltas(l - 1) + at,
                           rounding_of(in), last - first);
    }
  }

  const MlpArguments& args_;
  const MlpLayout& layout_;
  const int layers_;
  const bool errors_;
  std::vector<AlignedDoubles> inputs_;  // inputs_[l] (samples, in(l))
  std::vector<AlignedDoubles> slopes_;  // slopes_[l] (samples, in(l)): sigma' behind it
  std::vector<AlignedDoubles> deltas_;  // deltas_[l] (samples, chunk, out(l))
  // Bounds of their errors, in the same places; and what the next product makes errors of.
  std::vector<AlignedDoubles> input_errors_, slope_errors_, delta_errors_, feeds_, delta_feeds_;
  std::vector<WeightNorms> norms_;  // of large layers, per point
};

}  // namespace llr
