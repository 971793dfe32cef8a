// torch.ops.llr.mlp_jacobian on the CPU.
//
// The result is far larger than everything it is computed from, so the time is that of writing it once.
// Samples are taken in blocks, with double scratch for the signals of a block whatever the dtype:
//   1. forward:  A_l = sigma(A_{l-1} W_l^T + b_l) and its slopes, for the hidden layers;
//   2. backward: Delta_{l-1} = (Delta_l W_l) * slopes, one row per sample and output;
//   3. rows:     the outer products Delta_l A_{l-1}, written in address order.
// A narrow net runs a block through all three in one task. For a wide one, or few samples, each phase is
// spread over the threads by itself: neurons are shared out in pieces, rows in strips, and as many blocks
// go at once as their signals fit scratch_bytes. Either way all sums are cut up by the sizes alone, so the
// result is the same in every bit for any number of threads.
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "../mlp_arguments.h"
#include "../mlp_layout.h"
#include "allocate.h"
#include "kernels.h"
#include "products.h"

namespace llr {
namespace {

constexpr int64_t scratch_bytes = int64_t(8) << 20;
// Samples that share a matrix product: for a small net more of them, so that what a block costs beside its
// numbers does not show, within what the second-level cache holds.
constexpr int64_t block_samples = 32;
constexpr int64_t most_block_samples = 128;
constexpr int64_t block_bytes = int64_t(128) << 10;
constexpr int64_t piece_neurons = 128;        // neurons that a task computes for them
constexpr int64_t strip_columns = 1 << 15;    // columns that a task writes of a row, when rows are few
// Larger results do not fit a core's share of the cache: they are written past it.
constexpr int64_t streaming_bytes = int64_t(32) << 20;

// Samples [sample, sample + count) of a parameter point; their signals begin at row `slot` of the scratch
// arrays.
struct Block {
  int64_t point;
  int64_t sample;
  int64_t count;
  int64_t slot;
};

template <typename T>
class Jacobian {
 public:
  Jacobian(const MlpArguments& arguments, T* result)
      : args_(arguments),
        layout_(arguments.layout),
        layers_(layout_.layers()),
        outputs_(layout_.out(layers_ - 1)),
        result_(result),
        strips_(strips_of(layout_, strip_columns)),
        streaming_(arguments.points * arguments.samples * outputs_ * layout_.columns *
                       static_cast<int64_t>(sizeof(T)) >=
                   streaming_bytes) {
    // As many outputs at once, then as many samples in a block, as the budget lets.
    int64_t hidden = 0, widest = 0;
    for (int l = 1; l < layers_; ++l) {
      hidden += layout_.in(l);
      widest = std::max(widest, layout_.in(l));
    }
    const int64_t budget = scratch_bytes / static_cast<int64_t>(sizeof(double));
    const int64_t signals = 2 * hidden + layout_.in(0);
    chunk_ = std::clamp<int64_t>((budget - signals) / std::max<int64_t>(hidden, 1), 1, outputs_);
    const int64_t cost = signals + chunk_ * hidden;
    const int64_t roomy = std::clamp<int64_t>(block_bytes / (cost * static_cast<int64_t>(sizeof(double))),
                                              block_samples, most_block_samples);
    const int64_t whole_block = std::min(roomy, args_.samples);
    block_ = std::clamp<int64_t>(budget / cost, 1, whole_block);
    const int64_t per_point = ceil_div(args_.samples, block_);
    blocks_ = args_.points * per_point;
    at_once_ = std::clamp<int64_t>(budget / (cost * block_), 1, blocks_);
    const int64_t threads = at::get_num_threads();
    narrow_ = widest <= piece_neurons && block_ == whole_block &&
              (threads == 1 || blocks_ >= 4 * threads || total_numbers() <= 2 * thread_work);
  }

  void run() {
    if (narrow_) {
      allocate((at::get_num_threads() - 1) * thread_slots() + block_);
      parallel_tasks(blocks_, total_numbers(), [&](int64_t i) { whole_block(i); });
      return;
    }
    allocate(at_once_ * block_);
    std::vector<Block> round;
    for (int64_t first = 0; first < blocks_; first += at_once_) {
      round.clear();
      for (int64_t i = first; i < std::min(first + at_once_, blocks_); ++i) {
        round.push_back(block(i, (i - first) * block_));
      }
      forward(round);
      for (int64_t j = 0; j < outputs_; j += chunk_) {
        const int64_t outputs = std::min(chunk_, outputs_ - j);
        backward(round, j, outputs);
        write(round, j, outputs);
      }
    }
  }

 private:
  int64_t total_numbers() const { return args_.points * args_.samples * outputs_ * layout_.columns; }

  // Rows of scratch from one thread's to the next one's: a multiple of 8, so that all are equally aligned.
  // BLAS may round by the alignment.
  int64_t thread_slots() const { return ceil_div(block_, 8) * 8; }

  Block block(int64_t index, int64_t slot) const {
    const int64_t per_point = ceil_div(args_.samples, block_);
    const int64_t sample = index % per_point * block_;
    return {index / per_point, sample, std::min(block_, args_.samples - sample), slot};
  }

  void allocate(int64_t samples) {
    inputs_.resize(layers_);
    slopes_.resize(layers_);
    deltas_.resize(layers_);
    inputs_[0] = aligned_doubles(samples * layout_.in(0));
    for (int l = 1; l < layers_; ++l) {
      inputs_[l] = aligned_doubles(samples * layout_.in(l));
      slopes_[l] = aligned_doubles(samples * layout_.in(l));
      deltas_[l - 1] = aligned_doubles(samples * chunk_ * layout_.in(l));
    }
  }

  const T* weight(int layer, int64_t point) const {
    return args_.weights[layer].template const_data_ptr<T>() +
           (args_.weights_batched ? point * layout_.in(layer) * layout_.out(layer) : 0);
  }

  const T* bias(int layer, int64_t point) const {
    const at::Tensor& b = args_.biases[layer];
    if (!b.defined()) return nullptr;
    return b.template const_data_ptr<T>() + (args_.weights_batched ? point * layout_.out(layer) : 0);
  }

  // The block's samples as doubles.
  void load(const Block& block) {
    const int64_t d = layout_.in(0);
    const int64_t from = (args_.x_batched ? block.point * args_.samples : 0) + block.sample;
    std::copy_n(args_.x.template const_data_ptr<T>() + from * d, block.count * d,
                inputs_[0].get() + block.slot * d);
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
    double* slope = slopes_[l + 1].get() + block.slot * out + first;
    if (width == out) {
      math.activate(args_.activation, z, slope, block.count * out);
    } else {
      for (int64_t s = 0; s < block.count; ++s) {
        math.activate(args_.activation, z + s * out, slope + s * out, width);
      }
    }
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
    const double* slope = slopes_[l].get() + block.slot * in + first;
    for (int64_t r = 0; r < rows; ++r) {
      math_kernels().scale(delta + r * in, slope + r / outputs * in, width);
    }
  }

  // Points at the signals of one row: of the sample in `slot`, for output j of the `outputs` at hand.
  void aim(std::vector<const double*>& a, std::vector<const double*>& delta, int64_t slot, int64_t j,
           int64_t outputs) const {
    for (int l = 0; l < layers_; ++l) {
      a[l] = inputs_[l].get() + slot * layout_.in(l);
      if (l + 1 < layers_) delta[l] = deltas_[l].get() + (slot * outputs + j) * layout_.out(l);
    }
  }

  T* row(const Block& block, int64_t sample, int64_t j) const {
    return result_ +
           ((block.point * args_.samples + block.sample + sample) * outputs_ + j) * layout_.columns;
  }

  // A narrow net's block from its samples to its rows.
  void whole_block(int64_t index) {
    const Block b = block(index, at::get_thread_num() * thread_slots());
    load(b);
    for (int l = 0; l + 1 < layers_; ++l) forward_piece(b, l, 0, layout_.out(l));
    const Kernels<T>& kernels = row_kernels<T>();
    alignas(64) std::array<char, writer_bytes> writer;
    std::vector<const double*> a(layers_), delta(layers_, nullptr);
    for (int64_t first = 0; first < outputs_; first += chunk_) {
      const int64_t outputs = std::min(chunk_, outputs_ - first);
      for (int l = layers_ - 1; l >= 1; --l) backward_piece(b, l, 0, layout_.in(l), first, outputs);
      for (int64_t s = 0; s < b.count; ++s) {
        if (s == 0 || outputs < outputs_) kernels.open(writer.data(), row(b, s, first), streaming_);
        for (int64_t j = 0; j < outputs; ++j) {
          aim(a, delta, b.slot + s, j, outputs);
          kernels.row(writer.data(), layout_, strips_.data(), static_cast<int64_t>(strips_.size()),
                      {a.data(), delta.data(), first + j});
        }
        if (s + 1 == b.count || outputs < outputs_) kernels.close(writer.data());
      }
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
    const auto samples = static_cast<int64_t>(round.size()) * block_;
    parallel_tasks(static_cast<int64_t>(round.size()), samples * layout_.in(0),
                   [&](int64_t i) { load(round[i]); });
    for (int l = 0; l + 1 < layers_; ++l) {
      over_pieces(round, layout_.out(l), samples * layout_.in(l) * layout_.out(l),
                  [&](const Block& b, int64_t first, int64_t last) { forward_piece(b, l, first, last); });
    }
  }

  void backward(const std::vector<Block>& round, int64_t j, int64_t outputs) {
    const auto samples = static_cast<int64_t>(round.size()) * block_;
    for (int l = layers_ - 1; l >= 1; --l) {
      const int64_t terms = l == layers_ - 1 ? 1 : layout_.out(l);
      over_pieces(round, layout_.in(l), samples * outputs * layout_.in(l) * terms,
                  [&](const Block& b, int64_t first, int64_t last) {
                    backward_piece(b, l, first, last, j, outputs);
                  });
    }
  }

  // The rows of outputs [first, first + outputs), one strip a task, in address order; consecutive tasks of
  // a thread share a writer as long as they are neighbours in memory.
  void write(const std::vector<Block>& round, int64_t first, int64_t outputs) {
    const Kernels<T>& kernels = row_kernels<T>();
    const auto strips = static_cast<int64_t>(strips_.size());
    std::vector<int64_t> column(strips_.size() + 1, 0);
    for (int64_t s = 0; s < strips; ++s) column[s + 1] = column[s] + strips_[s].columns;
    int64_t tasks = 0;
    std::vector<int64_t> first_task(round.size() + 1, 0);
    for (size_t b = 0; b < round.size(); ++b) {
      tasks += round[b].count * outputs * strips;
      first_task[b + 1] = tasks;
    }
    const int64_t work = std::max<int64_t>(1, tasks / strips * layout_.columns);
    const int64_t grain = std::max<int64_t>(1, tasks * thread_work / work);
    at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      alignas(64) std::array<char, writer_bytes> writer;
      std::vector<const double*> a(layers_), delta(layers_, nullptr);
      size_t b = std::upper_bound(first_task.begin(), first_task.end(), begin) - first_task.begin() - 1;
      T* next = nullptr;  // where the open writer goes on
      for (int64_t task = begin; task < end;) {
        while (task >= first_task[b + 1]) ++b;
        const int64_t in_block = task - first_task[b];
        const int64_t strip = in_block % strips, r = in_block / strips;
        const int64_t strip_end = std::min(strips, strip + (end - task));
        T* destination = row(round[b], r / outputs, first + r % outputs) + column[strip];
        if (destination != next) {
          if (next != nullptr) kernels.close(writer.data());
          kernels.open(writer.data(), destination, streaming_);
        }
        aim(a, delta, round[b].slot + r / outputs, r % outputs, outputs);
        kernels.row(writer.data(), layout_, strips_.data() + strip, strip_end - strip,
                    {a.data(), delta.data(), first + r % outputs});
        next = destination + (column[strip_end] - column[strip]);
        task += strip_end - strip;
      }
      if (next != nullptr) kernels.close(writer.data());
    });
  }

  const MlpArguments& args_;
  const MlpLayout& layout_;
  const int layers_;
  const int64_t outputs_;
  T* const result_;
  const std::vector<Strip> strips_;
  const bool streaming_;

  int64_t chunk_;    // outputs at once
  int64_t block_;    // samples in a block
  int64_t blocks_;   // over all parameter points
  int64_t at_once_;  // blocks at once
  bool narrow_;
  std::vector<AlignedDoubles> inputs_;  // inputs_[l] (samples, in(l)): what layer l is fed
  std::vector<AlignedDoubles> slopes_;  // slopes_[l] (samples, in(l)): sigma' behind it
  std::vector<AlignedDoubles> deltas_;  // deltas_[l] (samples, chunk, out(l))
};

void compute(const MlpArguments& arguments, at::Tensor& result) {
  if (result.numel() == 0) return;
  if (result.scalar_type() == at::kDouble) {
    Jacobian<double>(arguments, result.mutable_data_ptr<double>()).run();
  } else {
    Jacobian<float>(arguments, result.mutable_data_ptr<float>()).run();
  }
}

at::Tensor mlp_jacobian(const at::Tensor& x, at::TensorList weights,
                        const c10::List<std::optional<at::Tensor>>& biases, std::string_view activation,
                        at::OptionalIntArrayRef columns) {
  const MlpArguments arguments = read_mlp_arguments(x, weights, biases, activation, columns);
  at::Tensor result = empty_result(arguments.result_sizes(), x.scalar_type());
  compute(arguments, result);
  return result;
}

void mlp_jacobian_out(const at::Tensor& x, at::TensorList weights,
                      const c10::List<std::optional<at::Tensor>>& biases, std::string_view activation,
                      at::OptionalIntArrayRef columns, at::Tensor& out) {
  const MlpArguments arguments = read_mlp_arguments(x, weights, biases, activation, columns);
  const std::vector<int64_t> sizes = arguments.result_sizes();
  TORCH_CHECK(out.sizes() == at::IntArrayRef(sizes), "mlp_jacobian: out has shape ", out.sizes(),
              "; expected ", at::IntArrayRef(sizes));
  TORCH_CHECK(out.scalar_type() == x.scalar_type() && out.device() == x.device(),
              "mlp_jacobian: out is ", out.scalar_type(), " on ", out.device(), "; expected ",
              x.scalar_type(), " on ", x.device());
  at::assert_no_internal_overlap(out);
  at::assert_no_overlap(out, x);
  for (const at::Tensor& w : weights) at::assert_no_overlap(out, w);
  for (const at::Tensor& b : arguments.biases) {
    if (b.defined()) at::assert_no_overlap(out, b);
  }
  if (out.is_contiguous() && !out.is_neg() && is_aligned(out)) {
    compute(arguments, out);
  } else {
    at::Tensor result = empty_result(sizes, x.scalar_type());
    compute(arguments, result);
    out.copy_(result);
  }
  // What autograd has saved of it is no longer valid.
  if (!out.is_inference()) out.unsafeGetTensorImpl()->bump_version();
}

}  // namespace
}  // namespace llr

TORCH_LIBRARY_IMPL(llr, CPU, m) {
  m.impl("mlp_jacobian", &llr::mlp_jacobian);
  m.impl("mlp_jacobian.out", &llr::mlp_jacobian_out);
}
