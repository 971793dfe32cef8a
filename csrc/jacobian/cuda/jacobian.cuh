// The Jacobian's rows: outer products of signals, each number written once.
//
// Vectors of 16 bytes start at multiples of 16 bytes, but rows may not: with an odd number of columns every
// other row begins in the middle of a vector. So a thread writes the same vector of columns in every
// `period`-th row, and looks up only once which tensor, neuron and input each of these columns belongs to. A
// vector that reaches beyond its row is written number by number.
#pragma once

#include "signals/cuda/activate.cuh"
#include "jacobian.h"
#include "common/cuda/kernel.cuh"

namespace llr::cuda {

constexpr int threads = 256;

template <typename T>
constexpr int vector_numbers = 16 / static_cast<int>(sizeof(T));

// The number of rows after which the offset of a row's start from a multiple of 16 bytes repeats.
template <typename T>
LLR_HD int period_of(int64_t pitch) {
  constexpr int V = vector_numbers<T>;
  return pitch % V == 0 ? 1 : (pitch % 2 == 0 ? V / 2 : V);
}

// The largest number of vectors that a row overlaps.
template <typename T>
LLR_HD int64_t vectors_of(int64_t columns, int64_t pitch, int misalignment) {
  constexpr int V = vector_numbers<T>;
  return (columns + V - 1 + (period_of<T>(pitch) == 1 ? misalignment : V - 1)) / V;
}

// A column's terms in Segment's formulas, for one thread.
struct Column {
  int a, in, delta, out;
};

// Looks up columns, those of a vector one after the other.
class ColumnReader {
 public:
  // Columns must be asked for in ascending order.
  template <typename T>
  LLR_DEVICE void go_to(const Rows<T>& rows, int64_t column) {
    while (g_ + 1 < rows.segments && column >= rows.segment[g_ + 1].column) ++g_;
    const int64_t offset = column - rows.segment[g_].column;
    const int width = rows.segment[g_].width;
    if (offset >> 32 == 0) {  // a division of 64 bits takes several times as long
      i_ = static_cast<int>(static_cast<uint32_t>(offset) / static_cast<uint32_t>(width));
    } else {
      i_ = static_cast<int>(offset / width);
    }
    k_ = static_cast<int>(offset - static_cast<int64_t>(i_) * width);
  }

  template <typename T>
  LLR_DEVICE Column read(const Rows<T>& rows) const {
    const Segment& s = rows.segment[g_];
    return {s.a + k_, s.in, s.delta + i_, s.out};
  }

  template <typename T>
  LLR_DEVICE void next(const Rows<T>& rows) {
    if (++k_ < rows.segment[g_].width) return;
    k_ = 0;
    if (++i_ < rows.segment[g_].neurons) return;
    i_ = 0;
    ++g_;
  }

 private:
  int g_ = 0, i_ = 0, k_ = 0;  // tensor, neuron, input
};

LLR_DEVICE double value_at(const Column& c, const double* signals, int sample, int output, int row) {
  const double a = signals[c.a + sample * c.in];
  if (c.out == 0) return c.delta == output ? a : 0.0;
  return a * signals[c.delta + row * c.out];
}

// A block's threads, arranged as `lanes` times `vectors`. A thread takes every lanes-th row, or, if the
// period is longer than that, every period-th row, in several passes. In its rows it takes every vectors-th
// vector.
struct Lanes {
  int lanes;  // a multiple or a divisor of the period
  int vectors;

  LLR_DEVICE int lane() const { return static_cast<int>(threadIdx.x) / vectors; }
  LLR_DEVICE int vector() const { return static_cast<int>(threadIdx.x) - lane() * vectors; }
};

// Writes vectors [first_vector, end_vector) of the rows first_row + row for `row` in [begin, end). `signals`
// holds the signals of these rows.
template <typename T>
LLR_DEVICE void write_vectors(const Rows<T>& rows, const double* signals, int64_t first_row, int begin, int end,
                              int64_t first_vector, int64_t end_vector, const Lanes& block) {
  constexpr int V = vector_numbers<T>;
  if (block.lane() >= block.lanes) return;
  const int period = period_of<T>(rows.pitch);
  const int step = block.lanes < period ? period : block.lanes;
  for (int first = begin + block.lane(); first < begin + step && first < end; first += block.lanes) {
    const int past = static_cast<int>((first_row + first) & (V - 1)) * static_cast<int>(rows.pitch & (V - 1));
    const int shift = (rows.misalignment + past) & (V - 1);
    const int first_sample = first / rows.outputs, first_output = first - first_sample * rows.outputs;
    const int sample_step = step / rows.outputs, output_step = step - sample_step * rows.outputs;
    ColumnReader reader;
    for (int64_t vector = first_vector + block.vector(); vector < end_vector; vector += block.vectors) {
      const int64_t column = vector * V - shift;
      if (column >= rows.columns) break;
      const bool whole = column >= 0 && column + V <= rows.columns;
      const int skipped = column < 0 ? static_cast<int>(-column) : 0;
      Column columns[V];
      reader.go_to(rows, column + skipped);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        columns[v] = reader.read(rows);
        if (v >= skipped && column + v + 1 < rows.columns) reader.next(rows);
      }

      int sample = first_sample, output = first_output;
      T* to = rows.first + (first_row + first) * rows.pitch + column;
      for (int row = first; row < end; row += step) {
        T values[V];
#pragma unroll
        for (int v = 0; v < V; ++v) {
          values[v] = static_cast<T>(value_at(columns[v], signals, sample, output, row));
        }
        if (whole) {
          store_vector(to, values);
        } else {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            if (column + v >= 0 && column + v < rows.columns) store_scalar(to + v, values[v]);
          }
        }
        to += step * rows.pitch;
        sample += sample_step;
        output += output_step;
        if (output >= rows.outputs) {
          output -= rows.outputs;
          ++sample;
        }
      }
    }
  }
}

// Blocks are numbered by piece (of `vectors` vectors) within group (of `rows_of_block` rows).
template <typename T>
LLR_KERNEL(threads, 4)
write_kernel(LLR_PARAMETER Rows<T> rows, const double* signals, int count, int rows_of_block, unsigned pieces,
             int64_t vectors, LLR_PARAMETER Lanes block) {
  const unsigned group = blockIdx.x / pieces, piece = blockIdx.x - group * pieces;
  const int64_t begin = static_cast<int64_t>(group) * rows_of_block;
  const int64_t end = begin + rows_of_block < count ? begin + rows_of_block : count;
  write_vectors(rows, signals, 0, static_cast<int>(begin), static_cast<int>(end), piece * vectors,
                (piece + 1) * vectors, block);
}

// Odd, so that the weights of consecutive neurons lie in different banks of shared memory.
LLR_HD int weight_pitch(int in) { return in | 1; }

template <typename T>
LLR_DEVICE void load_weights(const Net<T>& net, int64_t point, double* weights) {
  for (int l = 0; l < net.layers; ++l) {
    const int in = net.layer[l].in, count = in * net.layer[l].out;
    const T* const w = net.layer[l].weight + point * net.layer[l].weight_stride;
    for (int e = threadIdx.x; e < count; e += threads) {
      const int i = e / in;
      weights[net.weight_at[l] + i * weight_pitch(in) + (e - i * in)] = static_cast<double>(w[e]);
    }
    if (net.layer[l].bias == nullptr) continue;
    const T* const b = net.layer[l].bias + point * net.layer[l].bias_stride;
    for (int i = threadIdx.x; i < net.layer[l].out; i += threads) {
      weights[net.bias_at[l] + i] = static_cast<double>(b[i]);
    }
  }
}

// Computes for hidden layer l the inputs of the next layer, and the slopes.
template <typename T>
LLR_DEVICE void forward(const Net<T>& net, int l, int samples, const double* weights, double* signals) {
  const int in = net.layer[l].in, out = net.layer[l].out;
  for (int e = threadIdx.x; e < samples * out; e += threads) {
    const int s = e / out, i = e - s * out;
    const double* const w = weights + net.weight_at[l] + i * weight_pitch(in);
    const double* const a = signals + net.inputs_at[l] + s * in;
    double z = net.layer[l].bias == nullptr ? 0.0 : weights[net.bias_at[l] + i];
    for (int k = 0; k < in; ++k) z = fma(w[k], a[k], z);
    const Pair p = activate_at(net.activation, z);
    signals[net.inputs_at[l + 1] + e] = p.value;
    signals[net.slopes_at[l + 1] + e] = p.slope;
  }
}

// d outputs / d preactivations of layer l - 1
template <typename T>
LLR_DEVICE void backward(const Net<T>& net, int l, int samples, const double* weights, double* signals) {
  const int in = net.layer[l].in, out = net.layer[l].out, outputs = net.rows.outputs;
  const bool last = l == net.layers - 1;
  const double* const w = weights + net.weight_at[l];
  for (int e = threadIdx.x; e < samples * outputs * in; e += threads) {
    const int row = e / in, k = e - row * in;
    const int s = row / outputs;
    double sum = 0.0;
    if (last) {
      sum = w[(row - s * outputs) * weight_pitch(in) + k];
    } else {
      const double* const delta = signals + net.deltas_at[l] + row * out;
      for (int i = 0; i < out; ++i) sum = fma(delta[i], w[i * weight_pitch(in) + k], sum);
    }
    signals[net.deltas_at[l - 1] + e] = sum * signals[net.slopes_at[l] + s * in + k];
  }
}

template <typename T>
LLR_KERNEL(threads, 4)
net_kernel(LLR_PARAMETER Net<T> net, unsigned blocks_per_point, int64_t vectors, LLR_PARAMETER Lanes block) {
  Shared shared;
  double* const weights = shared.part<double>(net.weight_numbers);
  double* const signals = shared.part<double>(net.signal_numbers);
  const unsigned point = blockIdx.x / blocks_per_point;
  const int64_t first = static_cast<int64_t>(blockIdx.x - point * blocks_per_point) * net.groups * net.group;
  const int in = net.layer[0].in;
  load_weights(net, point, weights);
  if (threadIdx.x == 0) signals[0] = 1.0;
  for (int g = 0; g < net.groups; ++g) {
    const int64_t sample = first + static_cast<int64_t>(g) * net.group;
    if (sample >= net.samples) break;  // the whole block leaves
    const int samples = static_cast<int>(net.samples - sample < net.group ? net.samples - sample : net.group);
    const T* const x = net.x + point * net.x_stride + sample * in;
    for (int e = threadIdx.x; e < samples * in; e += threads) {
      signals[net.inputs_at[0] + e] = static_cast<double>(x[e]);
    }
    __syncthreads();
    for (int l = 0; l + 1 < net.layers; ++l) {
      forward(net, l, samples, weights, signals);
      __syncthreads();
    }
    for (int l = net.layers - 1; l >= 1; --l) {
      backward(net, l, samples, weights, signals);
      __syncthreads();
    }
    const int64_t first_row = (static_cast<int64_t>(point) * net.samples + sample) * net.rows.outputs;
    write_vectors(net.rows, signals, first_row, 0, samples * net.rows.outputs, 0, vectors, block);
    __syncthreads();
  }
}

}  // namespace llr::cuda
