// Launchers of the kernels that write a Jacobian.
#pragma once

#include <cstdint>

#include "common/activation.h"

#if defined(LLR_EMULATE)
#include "emulation.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace llr::cuda {

constexpr int most_segments = 32;  // tensors whose columns a launch writes
constexpr int most_layers = 8;     // of a net that one block computes completely

// One tensor's columns. Neuron i has `width` of them; column k of neuron i is delta a with
//   a     = signals[a + sample * in + k]: `in` numbers for each sample, 0 if all share them (a bias: 1), and
//   delta = signals[delta + row * out + i]: `out` numbers for each row; or, with out = 0, whether i is the
//           row's output (the last layer).
struct Segment {
  int64_t column;  // the first, counted from Rows::first
  int64_t neurons;
  int width;
  int a, in;
  int delta, out;
};

// Rows of a Jacobian, or the same columns of each.
template <typename T>
struct Rows {
  T* first;          // the first row's first column
  int64_t pitch;     // numbers from row to row
  int64_t columns;   // to be written of each
  int misalignment;  // of `first`, in numbers past a multiple of 16 bytes; set by the launchers
  int outputs;       // rows of a sample
  int segments;
  Segment segment[most_segments];  // in order of their columns, without gaps
};

// Writes `count` rows (a multiple of the outputs, below 2^31) from signals on the device.
template <typename T>
cudaError_t write_rows(Rows<T> rows, const double* signals, int64_t count, cudaStream_t stream);

template <typename T>
struct NetLayer {
  const T* weight;          // (out, in)
  const T* bias;            // (out), or null
  int64_t weight_stride;    // from parameter point to parameter point, 0 if they share one
  int64_t bias_stride;
  int in, out;
};

// A net that is computed in shared memory: one block takes some samples from their inputs to their rows.
template <typename T>
struct Net {
  Rows<T> rows;     // of all samples of all points; its segments' a and delta are set by `whole_net`, by layer:
  int layer_of[most_segments];  // which layer a segment belongs to
  bool bias[most_segments];     // whether it is the bias
  const T* x;        // (samples, inputs)
  int64_t x_stride;  // from parameter point to parameter point, 0 if they share the samples
  int64_t points, samples;
  Activation activation;
  int layers;
  NetLayer<T> layer[most_layers];
  // Set by `whole_net`: where things lie in shared memory, in numbers.
  int weight_at[most_layers], bias_at[most_layers];  // among the weights
  int inputs_at[most_layers], slopes_at[most_layers], deltas_at[most_layers];  // among the signals
  int weight_numbers, signal_numbers;
  int group;   // samples at once
  int groups;  // groups of samples for each block
};

// Whether one block can compute the net: `widths` has layers + 1 entries.
bool fits_a_block(const int64_t* widths, int layers, int segments, int64_t samples);

template <typename T>
cudaError_t whole_net(Net<T> net, cudaStream_t stream);

}  // namespace llr::cuda
