// What the derivatives of an MLP are made of, on the device: what each layer is fed, and the derivatives of the
// outputs with respect to the preactivations. As csrc/signals/cpu/signals.h, with torch's matrix products between our
// own kernels.
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

  // Numbers for so many samples (over all points at hand).
  int64_t numbers(int64_t samples) const;

  // Room for so many samples.
  void allocate(int64_t samples);

  // The signals of samples [sample, sample + samples) of each of the points [point, point + points).
  void compute(int64_t point, int64_t points, int64_t sample, int64_t samples);

  // One array of which everything is a part; its first number is 1.
  const double* data() const { return scratch_.const_data_ptr<double>(); }

  // Where the numbers that layer l is fed begin: in(l) for each sample.
  int inputs(int l) const { return static_cast<int>(inputs_[l]); }

  // Where a hidden layer's derivatives begin: out(l) for each sample and output.
  int deltas(int l) const { return static_cast<int>(deltas_[l]); }

 private:
  // (points, rows, columns) at this place.
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
  std::vector<int64_t> inputs_, slopes_, deltas_;  // per layer; slopes_[l] of what inputs_[l] came from
};

}  // namespace llr::cuda
