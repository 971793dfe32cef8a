// torch.ops.llr.mlp_jacobian on the CPU, and mlp_jacobian_with_error, which also bounds the error of each
// row.
//
// The result is far larger than everything it is computed from, so the time is close to that of writing it
// once. Samples are processed in blocks. The scratch for the signals of a block is in double for every dtype:
//   1. forward:  A_l = sigma(A_{l-1} W_l^T + b_l) and its slopes, for the hidden layers;
//   2. backward: Delta_{l-1} = (Delta_l W_l) * slopes, one row per sample and output;
//   3. rows:     the outer products Delta_l A_{l-1}, written in address order.
// For a narrow net, one task takes a block through all three phases. For a wide net, or few samples, each
// phase is distributed over the threads separately: neurons in pieces, rows in strips, and as many blocks at
// once as have signals that fit scratch_bytes. In both cases the sizes alone decide how sums are divided, so
// the result has the same bits for any number of threads.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "common/mlp_arguments.h"
#include "common/mlp_layout.h"
#include "common/cpu/allocate.h"
#include "common/cpu/interrupt.h"
#include "common/cpu/kernels.h"
#include "common/cpu/products.h"
#include "signals/cpu/signals.h"

namespace llr {
namespace {

constexpr int64_t scratch_bytes = int64_t(8) << 20;
// Samples that share a matrix product. A small net takes more of them, so that the fixed cost of a block does
// not matter, as long as their signals fit the second-level cache.
constexpr int64_t block_samples = 32;
constexpr int64_t most_block_samples = 128;
constexpr int64_t block_bytes = int64_t(128) << 10;
constexpr int64_t strip_columns = 1 << 15;    // columns of a row that one task writes, if there are few rows
// Larger results do not fit a core's share of the cache: they are written with stores that bypass the caches.
constexpr int64_t streaming_bytes = int64_t(32) << 20;

template <typename T>
class Jacobian {
 public:
  // `errors`, if not null: (points, samples, outputs), a bound of each row's error.
  Jacobian(const MlpArguments& arguments, T* result, double* errors = nullptr)
      : args_(arguments),
        layout_(arguments.layout),
        layers_(layout_.layers()),
        outputs_(layout_.out(layers_ - 1)),
        result_(result),
        errors_(errors),
        strips_(strips_of(layout_, strip_columns)),
        streaming_(arguments.points * arguments.samples * outputs_ * layout_.columns *
                       static_cast<int64_t>(sizeof(T)) >=
                   streaming_bytes),
        signals_(arguments, errors != nullptr) {
    // As many outputs at once, then as many samples in a block, as the budget allows.
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
      signals_.allocate((at::get_num_threads() - 1) * thread_slots() + block_, chunk_);
      parallel_tasks(blocks_, total_numbers(), [&](int64_t i) { whole_block(i); });
      return;
    }
    signals_.allocate(at_once_ * block_, chunk_);
    std::vector<Block> round;
    for (int64_t first = 0; first < blocks_; first += at_once_) {
      round.clear();
      for (int64_t i = first; i < std::min(first + at_once_, blocks_); ++i) {
        round.push_back(block(i, (i - first) * block_));
      }
      signals_.forward(round);
      for (int64_t j = 0; j < outputs_; j += chunk_) {
        const int64_t outputs = std::min(chunk_, outputs_ - j);
        signals_.backward(round, j, outputs);
        if (errors_ != nullptr) {
          parallel_tasks(static_cast<int64_t>(round.size()), total_numbers(),
                         [&](int64_t i) { bound(round[i], j, outputs); });
        }
        write(round, j, outputs);
      }
    }
  }

 private:
  int64_t total_numbers() const { return args_.points * args_.samples * outputs_ * layout_.columns; }

  // Rows of scratch between the starts of two threads' parts: a multiple of 8, so that all parts have the
  // same alignment. The rounding in BLAS may depend on the alignment.
  int64_t thread_slots() const { return ceil_div(block_, 8) * 8; }

  Block block(int64_t index, int64_t slot) const {
    const int64_t per_point = ceil_div(args_.samples, block_);
    const int64_t sample = index % per_point * block_;
    return {index / per_point, sample, std::min(block_, args_.samples - sample), slot};
  }

  // Sets a and delta to the signals of one row: of the sample in `slot`, for output j of the current
  // `outputs`.
  void aim(std::vector<const double*>& a, std::vector<const double*>& delta, int64_t slot, int64_t j,
           int64_t outputs) const {
    for (int l = 0; l < layers_; ++l) {
      a[l] = signals_.inputs(l) + slot * layout_.in(l);
      if (l + 1 < layers_) delta[l] = signals_.deltas(l) + (slot * outputs + j) * layout_.out(l);
    }
  }

  int64_t row_index(const Block& block, int64_t sample, int64_t j) const {
    return (block.point * args_.samples + block.sample + sample) * outputs_ + j;
  }

  T* row(const Block& block, int64_t sample, int64_t j) const {
    return result_ + row_index(block, sample, j) * layout_.columns;
  }

  // Writes error bounds for a block's rows, of outputs [first, first + outputs).
  void bound(const Block& block, int64_t first, int64_t outputs) {
    if (outputs == outputs_) return signals_.row_errors(block, outputs, errors_ + row_index(block, 0, 0));
    std::vector<double> errors(block.count * outputs);
    signals_.row_errors(block, outputs, errors.data());
    for (int64_t s = 0; s < block.count; ++s) {
      std::copy_n(errors.data() + s * outputs, outputs, errors_ + row_index(block, s, first));
    }
  }

  // All phases for one block of a narrow net.
  void whole_block(int64_t index) {
    const Block b = block(index, at::get_thread_num() * thread_slots());
    signals_.load(b);
    for (int l = 0; l + 1 < layers_; ++l) signals_.forward_piece(b, l, 0, layout_.out(l));
    const Kernels<T>& kernels = row_kernels<T>();
    alignas(64) std::array<char, writer_bytes> writer;
    std::vector<const double*> a(layers_), delta(layers_, nullptr);
    const bool long_rows = outputs_ * layout_.columns >= thread_work;
    for (int64_t first = 0; first < outputs_; first += chunk_) {
      const int64_t outputs = std::min(chunk_, outputs_ - first);
      for (int l = layers_ - 1; l >= 1; --l) {
        signals_.backward_piece(b, l, 0, layout_.in(l), first, outputs);
      }
      if (errors_ != nullptr) bound(b, first, outputs);
      for (int64_t s = 0; s < b.count; ++s) {
        if (s == 0 || outputs < outputs_) kernels.open(writer.data(), row(b, s, first), streaming_);
        for (int64_t j = 0; j < outputs; ++j) {
          if (long_rows) interruption_point(layout_.columns);
          aim(a, delta, b.slot + s, j, outputs);
          kernels.row(writer.data(), layout_, strips_.data(), static_cast<int64_t>(strips_.size()),
                      {a.data(), delta.data(), first + j});
        }
        if (s + 1 == b.count || outputs < outputs_) kernels.close(writer.data());
      }
    }
  }

  // Writes the rows of outputs [first, first + outputs) in address order, one strip per task. Consecutive
  // tasks of a thread share a writer as long as they are neighbours in memory.
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
    parallel_for(tasks, grain, [&](int64_t begin, int64_t end) {
      alignas(64) std::array<char, writer_bytes> writer;
      std::vector<const double*> a(layers_), delta(layers_, nullptr);
      size_t b = std::upper_bound(first_task.begin(), first_task.end(), begin) - first_task.begin() - 1;
      T* next = nullptr;  // the address that the open writer writes next
      for (int64_t task = begin; task < end;) {
        interruption_point(strip_columns);
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
  double* const errors_;
  const std::vector<Strip> strips_;
  const bool streaming_;
  Signals<T> signals_;

  int64_t chunk_;    // outputs at once
  int64_t block_;    // samples in a block
  int64_t blocks_;   // over all parameter points
  int64_t at_once_;  // blocks at once
  bool narrow_;
};

void compute(const MlpArguments& arguments, at::Tensor& result, double* errors = nullptr) {
  if (result.numel() == 0) return;
  if (result.scalar_type() == at::kDouble) {
    Jacobian<double>(arguments, result.mutable_data_ptr<double>(), errors).run();
  } else {
    Jacobian<float>(arguments, result.mutable_data_ptr<float>(), errors).run();
  }
}

at::Tensor mlp_jacobian(const at::Tensor& x, at::TensorList weights,
                        const c10::List<std::optional<at::Tensor>>& biases, std::string_view activation,
                        at::OptionalIntArrayRef columns) {
  const MlpArguments arguments = read_mlp_arguments("mlp_jacobian", x, weights, biases, activation, columns);
  at::Tensor result = empty_result("mlp_jacobian", arguments.result_sizes(), x.scalar_type());
  compute(arguments, result);
  return result;
}

std::tuple<at::Tensor, at::Tensor> mlp_jacobian_with_error(
    const at::Tensor& x, at::TensorList weights, const c10::List<std::optional<at::Tensor>>& biases,
    std::string_view activation, at::OptionalIntArrayRef columns) {
  const MlpArguments arguments =
      read_mlp_arguments("mlp_jacobian_with_error", x, weights, biases, activation, columns);
  const std::vector<int64_t> sizes = arguments.result_sizes();
  at::Tensor result = empty_result("mlp_jacobian_with_error", sizes, x.scalar_type());
  at::Tensor error = at::empty(at::IntArrayRef(sizes).slice(0, sizes.size() - 1), at::TensorOptions(at::kDouble));
  compute(arguments, result, error.mutable_data_ptr<double>());
  return {result, error};
}

void mlp_jacobian_out(const at::Tensor& x, at::TensorList weights,
                      const c10::List<std::optional<at::Tensor>>& biases, std::string_view activation,
                      at::OptionalIntArrayRef columns, at::Tensor& out) {
  const MlpArguments arguments = read_mlp_arguments("mlp_jacobian", x, weights, biases, activation, columns);
  check_out("mlp_jacobian", out, arguments, x, weights);
  if (is_writable(out)) {
    compute(arguments, out);
  } else {
    at::Tensor result = empty_result("mlp_jacobian", arguments.result_sizes(), x.scalar_type());
    compute(arguments, result);
    out.copy_(result);
  }
  // What autograd has saved of it is no longer valid.
  if (!out.is_inference()) out.unsafeGetTensorImpl()->bump_version();
}

}  // namespace
}  // namespace llr

TORCH_LIBRARY_IMPL(llr, CPU, m) {
  m.impl("mlp_jacobian", &llr::Interruptible<"mlp_jacobian", &llr::mlp_jacobian>::call);
  m.impl("mlp_jacobian.out", &llr::Interruptible<"mlp_jacobian", &llr::mlp_jacobian_out>::call);
  m.impl("mlp_jacobian_with_error",
         &llr::Interruptible<"mlp_jacobian_with_error", &llr::mlp_jacobian_with_error>::call);
}
