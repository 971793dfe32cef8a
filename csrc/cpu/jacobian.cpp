// torch.ops.llr.mlp_jacobian on the CPU.
//
// The result is far larger than everything it is computed from, so the time is that of writing it once.
// Samples are taken a block at a time, so that the signals of a block (activations, slopes, deltas: double
// whatever the dtype) stay within scratch_bytes; for each block
//   1. forward:  A_l = sigma(A_{l-1} W_l^T + b_l) and its slopes, for the hidden layers;
//   2. backward: Delta_{l-1} = (Delta_l W_l) * slopes, one row per sample and output;
//   3. rows:     the outer products Delta_l A_{l-1}, written in address order.
// Every phase is cut into pieces by the sizes alone, never by the number of threads, so the result does not
// depend on it in any bit.
#include <ATen/CPUFunctions.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "../mlp_arguments.h"
#include "../mlp_layout.h"
#include "allocate.h"
#include "kernels.h"

#if defined(__GNUC__) || defined(__clang__)
// In a torch built with MKL; absent, and null, with any other BLAS.
extern "C" int MKL_Set_Num_Threads_Local(int) __attribute__((weak));
#endif

namespace llr {
namespace {

// While it lives, MKL runs its products on the calling thread alone. Inside a parallel region it would do
// so anyway, but cut the product up as if for several threads, and round accordingly.
class OneBlasThread {
 public:
#if defined(__GNUC__) || defined(__clang__)
  OneBlasThread() : previous_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {}
  ~OneBlasThread() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(previous_);
  }
#endif
  OneBlasThread(const OneBlasThread&) = delete;
  OneBlasThread& operator=(const OneBlasThread&) = delete;

 private:
  [[maybe_unused]] int previous_ = 0;
};

constexpr int64_t scratch_bytes = int64_t(8) << 20;
constexpr int64_t block_samples = 32;   // samples that share a matrix product
constexpr int64_t block_neurons = 128;  // neurons that a task computes for them
constexpr int64_t strip_columns = 1 << 15;
constexpr int64_t small_product = 1 << 14;  // multiply-adds up to which our own loop beats a BLAS call
// Larger results do not fit a core's share of the cache: they are written past it.
constexpr int64_t streaming_bytes = int64_t(4) << 20;

// Runs f(i) for i in [0, count) on the threads that `work` multiply-adds or numbers deserve.
template <typename F>
void parallel_tasks(int64_t count, int64_t work, const F& f) {
  if (count <= 0) return;
  const int64_t grain = std::max<int64_t>(1, (count * 32768) / std::max<int64_t>(work, 1));
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const OneBlasThread one_thread;
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

at::Tensor view(const double* p, int64_t rows, int64_t columns, int64_t row_stride,
                int64_t column_stride) {
  return at::from_blob(const_cast<double*>(p), {rows, columns}, {row_stride, column_stride},
                       at::TensorOptions(at::kDouble));
}

// c (m, n) += a (m, k) b (k, n); b's rows are row_stride apart, its columns column_stride. `spare` is
// room for a copy of b.
void multiply_add(double* c, int64_t ldc, const double* a, int64_t lda, const double* b,
                  int64_t row_stride, int64_t column_stride, int64_t m, int64_t n, int64_t k,
                  std::vector<double>& spare) {
  if (m * n * k <= small_product || n * k <= 256) {
    if (column_stride != 1) {
      spare.resize(n * k);
      for (int64_t p = 0; p < k; ++p) {
        for (int64_t j = 0; j < n; ++j) spare[p * n + j] = b[p * row_stride + j * column_stride];
      }
      b = spare.data();
      row_stride = n;
    }
    math_kernels().multiply_add(c, ldc, a, lda, b, row_stride, m, n, k);
    return;
  }
  at::Tensor out = view(c, m, n, ldc, 1);
  at::cpu::addmm_out(out, out, view(a, m, k, lda, 1), view(b, k, n, row_stride, column_stride));
}

// Rows [0, rows) x columns [0, columns) of a matrix of T as doubles: the matrix itself when it is one,
// else a copy in `spare`.
struct Panel {
  const double* data;
  int64_t row_stride;
};

Panel panel(const double* w, int64_t stride, int64_t, int64_t, std::vector<double>&) {
  return {w, stride};
}

Panel panel(const float* w, int64_t stride, int64_t rows, int64_t columns,
            std::vector<double>& spare) {
  spare.resize(rows * columns);
  for (int64_t i = 0; i < rows; ++i) {
    std::copy_n(w + i * stride, columns, spare.data() + i * columns);
  }
  return {spare.data(), columns};
}

// A finite number times zero is zero; NaN and infinity times zero are NaN, and a NaN stays in any sum.
template <typename T>
bool all_finite(const T* p, int64_t count) {
  T sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int k = 0; k < 8; ++k) sums[k] += p[i + k] * T(0);
  }
  for (; i < count; ++i) sums[0] += p[i] * T(0);
  T total = 0;
  for (T s : sums) total += s;
  return total == T(0);
}

template <typename T>
class Jacobian {
 public:
  Jacobian(const MlpArguments& arguments, T* result)
      : args_(arguments),
        layout_(arguments.layout),
        layers_(layout_.layers()),
        outputs_(layout_.out(layers_ - 1)),
        result_(result),
        streaming_(arguments.points * arguments.samples * outputs_ * layout_.columns *
                       static_cast<int64_t>(sizeof(T)) >=
                   streaming_bytes),
        strips_(strips_of(layout_, strip_columns)) {}

  void run() {
    const int64_t blocks = args_.points * ceil_div(args_.samples, block_samples);
    int64_t hidden = 0;
    for (int l = 1; l < layers_; ++l) hidden += layout_.in(l);
    const int64_t budget = scratch_bytes / static_cast<int64_t>(sizeof(double));
    // Outputs at once, samples in a block, blocks at once: each as many as the budget lets.
    const int64_t per_sample = 2 * hidden + layout_.in(0);
    output_count_ = std::clamp<int64_t>((budget - per_sample) / std::max<int64_t>(hidden, 1), 1, outputs_);
    const int64_t cost = per_sample + output_count_ * hidden;
    block_ = std::clamp<int64_t>(budget / cost, 1, block_samples);
    const int64_t all_blocks =
        block_ == block_samples ? blocks : args_.points * ceil_div(args_.samples, block_);
    const int64_t at_once = std::clamp<int64_t>(budget / (cost * block_), 1, all_blocks);

    allocate(at_once * block_);
    for (int64_t first = 0; first < all_blocks; first += at_once) {
      collect(first, std::min(first + at_once, all_blocks));
      forward();
      for (output_first_ = 0; output_first_ < outputs_; output_first_ += output_count_) {
        output_last_ = std::min(output_first_ + output_count_, outputs_);
        backward();
        write_rows();
      }
    }
  }

 private:
  struct Block {
    int64_t point;   // parameter point
    int64_t sample;  // first sample
    int64_t count;
    int64_t slot;  // of the first sample, in the scratch arrays
  };

  void allocate(int64_t samples) {
    inputs_.resize(layers_);
    slopes_.resize(layers_);
    deltas_.resize(layers_);
    inputs_[0] = aligned_doubles(samples * layout_.in(0));
    for (int l = 1; l < layers_; ++l) {
      inputs_[l] = aligned_doubles(samples * layout_.in(l));
      slopes_[l] = aligned_doubles(samples * layout_.in(l));
      deltas_[l - 1] = aligned_doubles(samples * output_count_ * layout_.in(l));
    }
  }

  // The blocks [first, last) of this round, and their inputs as doubles.
  void collect(int64_t first, int64_t last) {
    blocks_.clear();
    samples_ = 0;
    const int64_t per_point = ceil_div(args_.samples, block_);
    for (int64_t b = first; b < last; ++b) {
      const int64_t sample = b % per_point * block_;
      const int64_t count = std::min(block_, args_.samples - sample);
      blocks_.push_back({b / per_point, sample, count, samples_});
      samples_ += count;
    }
    const int64_t d = layout_.in(0);
    const T* x = args_.x.template const_data_ptr<T>();
    parallel_tasks(static_cast<int64_t>(blocks_.size()), samples_ * d, [&](int64_t i) {
      const Block& block = blocks_[i];
      const int64_t from = (args_.x_batched ? block.point * args_.samples : 0) + block.sample;
      std::copy_n(x + from * d, block.count * d, inputs_[0].get() + block.slot * d);
    });
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

  // f(block, first neuron, last neuron) over all blocks and all `neurons` in pieces.
  template <typename F>
  void over_pieces(int64_t neurons, int64_t work, const F& f) {
    const int64_t pieces = ceil_div(neurons, block_neurons);
    const auto blocks = static_cast<int64_t>(blocks_.size());
    parallel_tasks(blocks * pieces, work, [&](int64_t i) {
      const int64_t first = i % pieces * block_neurons;
      f(blocks_[i / pieces], first, std::min(first + block_neurons, neurons));
    });
  }

  void forward() {
    const MathKernels& math = math_kernels();
    for (int l = 0; l + 1 < layers_; ++l) {
      const int64_t in = layout_.in(l), out = layout_.out(l);
      over_pieces(out, samples_ * in * out, [&](const Block& block, int64_t first, int64_t last) {
        std::vector<double> converted, spare, slopes;
        const int64_t width = last - first;
        const T* b = bias(l, block.point);
        double* z = inputs_[l + 1].get() + block.slot * out + first;
        for (int64_t s = 0; s < block.count; ++s) {
          if (b != nullptr) {
            std::copy_n(b + first, width, z + s * out);
          } else {
            std::fill_n(z + s * out, width, 0.0);
          }
        }
        const Panel w = panel(weight(l, block.point) + first * in, in, width, in, converted);
        multiply_add(z, out, inputs_[l].get() + block.slot * in, in, w.data, 1, w.row_stride,
                     block.count, width, in, spare);
        double* slope = slopes_[l + 1].get() + block.slot * out + first;
        if (width == out) {
          math.activate(args_.activation, z, slope, block.count * out);
        } else {
          for (int64_t s = 0; s < block.count; ++s) {
            math.activate(args_.activation, z + s * out, slope + s * out, width);
          }
        }
      });
    }
  }

  void backward() {
    const MathKernels& math = math_kernels();
    const int64_t outputs = output_last_ - output_first_;
    for (int l = layers_ - 1; l >= 1; --l) {
      // d output / d z of layer l - 1, from that of layer l.
      const int64_t in = layout_.in(l), out = layout_.out(l);
      const bool last_layer = l == layers_ - 1;
      const int64_t work = samples_ * outputs * in * (last_layer ? 1 : out);
      over_pieces(in, work, [&](const Block& block, int64_t first, int64_t last) {
        std::vector<double> converted, spare;
        const int64_t width = last - first;
        double* delta = deltas_[l - 1].get() + block.slot * outputs * in + first;
        if (last_layer) {
          const T* w = weight(l, block.point);
          for (int64_t s = 0; s < block.count; ++s) {
            for (int64_t j = 0; j < outputs; ++j) {
              std::copy_n(w + (output_first_ + j) * in + first, width, delta + (s * outputs + j) * in);
            }
          }
        } else {
          const int64_t rows = block.count * outputs;
          for (int64_t r = 0; r < rows; ++r) std::fill_n(delta + r * in, width, 0.0);
          const Panel w = panel(weight(l, block.point) + first, in, out, width, converted);
          multiply_add(delta, in, deltas_[l].get() + block.slot * outputs * out, out, w.data,
                       w.row_stride, 1, rows, width, out, spare);
        }
        for (int64_t s = 0; s < block.count; ++s) {
          const double* slope = slopes_[l].get() + (block.slot + s) * in + first;
          for (int64_t j = 0; j < outputs; ++j) {
            math.scale(delta + (s * outputs + j) * in, slope, width);
          }
        }
      });
    }
  }

  void write_rows() {
    const Kernels<T>& kernels = row_kernels<T>();
    const int64_t outputs = output_last_ - output_first_;
    const int64_t rows = samples_ * outputs;
    // Whole rows while there are enough of them for the threads, else strips of rows. This only decides
    // who writes what: every number is computed alone.
    const int64_t strips = static_cast<int64_t>(strips_.size());
    const bool whole = rows >= 64 || strips == 1;
    const int64_t per_row = whole ? 1 : strips;
    std::vector<int64_t> strip_column(strips_.size() + 1, 0);
    for (int64_t s = 0; s < strips; ++s) strip_column[s + 1] = strip_column[s] + strips_[s].columns;
    const int64_t tasks = rows * per_row;
    const int64_t grain =
        std::max<int64_t>(1, (tasks * 32768) / std::max<int64_t>(1, rows * layout_.columns));
    at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      alignas(64) std::array<char, writer_bytes> writer;
      std::vector<const double*> a(layers_), delta(layers_, nullptr);
      const RowSignals base{a.data(), delta.data(), 0};
      T* next = nullptr;  // where the open writer goes on
      for (int64_t task = begin; task < end;) {
        const int64_t row = task / per_row;
        const int64_t strip = task % per_row;
        const int64_t strip_end = whole ? strips : std::min(strips, strip + (end - task));
        const int64_t slot = row / outputs;
        const int64_t j = row % outputs;
        const Block& block = blocks_[block_of(slot)];
        const int64_t target_row =
            (block.point * args_.samples + block.sample + slot - block.slot) * outputs_ + output_first_ + j;
        T* destination = result_ + target_row * layout_.columns + (whole ? 0 : strip_column[strip]);
        if (destination != next) {
          if (next != nullptr) kernels.close(writer.data());
          kernels.open(writer.data(), destination, streaming_);
        }
        for (int l = 0; l < layers_; ++l) {
          a[l] = inputs_[l].get() + slot * layout_.in(l);
          if (l + 1 < layers_) delta[l] = deltas_[l].get() + row * layout_.out(l);
        }
        RowSignals signals = base;
        signals.output = output_first_ + j;
        const int64_t s0 = whole ? 0 : strip;
        const int64_t s1 = whole ? strips : strip_end;
        kernels.row(writer.data(), layout_, strips_.data() + s0, s1 - s0, signals);
        next = destination + (strip_column[s1] - strip_column[s0]);
        task += whole ? 1 : s1 - s0;
      }
      if (next != nullptr) kernels.close(writer.data());
    });
  }

  // Blocks hold block_ samples each but for the last of a parameter point.
  int64_t block_of(int64_t slot) const {
    auto after = std::upper_bound(blocks_.begin(), blocks_.end(), slot,
                                  [](int64_t s, const Block& b) { return s < b.slot; });
    return after - blocks_.begin() - 1;
  }

  const MlpArguments& args_;
  const MlpLayout& layout_;
  const int layers_;
  const int64_t outputs_;
  T* const result_;
  const bool streaming_;
  const std::vector<Strip> strips_;

  int64_t block_ = 0;
  int64_t output_count_ = 0;
  int64_t output_first_ = 0, output_last_ = 0;
  int64_t samples_ = 0;  // in this round
  std::vector<Block> blocks_;
  std::vector<AlignedDoubles> inputs_;  // inputs_[l] (samples, in(l)): what layer l is fed
  std::vector<AlignedDoubles> slopes_;  // slopes_[l] (samples, in(l)): sigma' behind it
  std::vector<AlignedDoubles> deltas_;  // deltas_[l] (samples, outputs, out(l))
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
  if (out.is_contiguous()) {
    compute(arguments, out);
  } else {
    at::Tensor result = empty_result(sizes, x.scalar_type());
    compute(arguments, result);
    out.copy_(result);
  }
}

// The index of the first tensor with a NaN or an infinity, -1 if there is none. One pass, no temporaries.
int64_t first_nonfinite(at::TensorList tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& t = tensors[i];
    TORCH_CHECK(t.scalar_type() == at::kDouble || t.scalar_type() == at::kFloat,
                "first_nonfinite: tensors[", i, "] is ", t.scalar_type(), "; expected float32 or float64");
    const at::Tensor dense = t.contiguous();
    const bool finite = dense.scalar_type() == at::kDouble
                            ? all_finite(dense.const_data_ptr<double>(), dense.numel())
                            : all_finite(dense.const_data_ptr<float>(), dense.numel());
    if (!finite) return static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace
}  // namespace llr

TORCH_LIBRARY_IMPL(llr, CPU, m) {
  m.impl("mlp_jacobian", &llr::mlp_jacobian);
  m.impl("mlp_jacobian.out", &llr::mlp_jacobian_out);
  m.impl("first_nonfinite", &llr::first_nonfinite);
}
