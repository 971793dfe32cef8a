// The signals from which the derivatives of an MLP are computed, on the device: the inputs of each layer, and
// the derivatives of the outputs with respect to the preactivations. Like csrc/signals/cpu/signals.h, with
// torch's matrix products between our own kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "common/mlp_arguments.h"
#include "common/cuda/device.h"
#include "signals.h"

namespace llr::cuda {

class DeviceSignals {
 public:
  // The weights as doubles; `op` names the operator in errors.
  DeviceSignals(const char* op, const MlpArguments& arguments);

  // How many numbers the signals of this many samples take (over all current points).
  int64_t numbers(int64_t samples) const;

  // Allocates memory for this many samples.
  void allocate(int64_t samples);

  // The signals of samples [sample, sample + samples) of each of the points [point, point + points).
  void compute(int64_t point, int64_t points, int64_t sample, int64_t samples);

  // The array that holds all signals; its first number is 1.
  const double* data() const { return scratch_.const_data_ptr<double>(); }

  // Where the inputs of layer l begin: in(l) numbers for each sample.
  int inputs(int l) const { return static_cast<int>(inputs_[l]); }

  // Where a hidden layer's derivatives begin: out(l) numbers for each sample and output.
  int deltas(int l) const { return static_cast<int>(deltas_[l]); }

 private:
  // The part of the array from `begin` on, as (points, rows, columns).
  at::Tensor part(int64_t begin, int64_t points, int64_t rows, int64_t columns) const;
  at::Tensor weight(int l, int64_t point, int64_t points) const;
  void forward(int l, int64_t point, int64_t points, int64_t samples);
  void backward(int l, int64_t point, int64_t points, int64_t samples);
  int layers() const { return args_.layout.layers(); }
  int64_t outputs() const { return args_.layout.out(layers() - 1); }

  const char* const op_;
  const MlpArguments& args_;
  std::vector<at::Tensor> weights_;  // (1 or B, out, in), float64
  std::vector<at::Tensor> biases_;   // (1 or B, 1, out), float64; undefined where a layer has none
  at::Tensor scratch_;
  std::vector<int64_t> inputs_, slopes_, deltas_;  // per layer; slopes_[l]: of the activation that gave inputs_[l]
};

}  // namespace llr::cuda
