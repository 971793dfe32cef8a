// torch.ops.llr.lm_solve on the CPU.
#include "lm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <string_view>
#include <thread>
#include <tuple>

#include "common/memory.h"
#include "common/cpu/allocate.h"
#include "common/cpu/interrupt.h"
#include "common/cpu/kernels.h"
#include "lm_arguments.h"
#include "common/cpu/products.h"
#include "common/cpu/simd.h"

#if LLR_X86_DISPATCH
#include <immintrin.h>
#endif

namespace llr {

LmQueue::LmQueue(const int64_t* which, int64_t starts, int64_t sets, bool first)
    : which_(which), starts_(starts), first_(first ? sets : 0) {
  for (auto& start : first_) start = starts;
}

bool LmQueue::obsolete(int64_t start) const { return !first_.empty() && start > first_[which_[start]]; }

int64_t LmQueue::take() {
  for (;;) {
    const int64_t start = next_++;
    if (start >= starts_) return -1;
    if (!obsolete(start)) return start;
  }
}

void LmQueue::converged(int64_t start) {
  if (first_.empty()) return;
  std::atomic<int64_t>& first = first_[which_[start]];
  for (int64_t seen = first; start < seen && !first.compare_exchange_weak(seen, start);) {
  }
}

#define LLR_PER_LEVEL "lm/cpu/lm.inc"
#include "common/cpu/per_level.inc"

const LmKernels& lm_kernels() { LLR_PICK(lm_table) }

namespace {

constexpr const char* op = "lm_solve";

// Counts the threads that work on the queue. Only the calling thread can check for signals, so it waits until
// all others have ended: they may still have a thousand iterations to do for a start.
class Workers {
 public:
  class Guard {
   public:
    explicit Guard(Workers& workers) : workers_(workers) { ++workers_.running_; }
    ~Guard() { --workers_.running_; }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    Workers& workers_;
  };

  // To be called by a worker that has ended. Workers that have not begun are not counted: they may be waiting
  // for this thread.
  void wait_if_caller() {
    if (std::this_thread::get_id() != caller_) return;
    for (int64_t turn = 0; running_ > 0; ++turn) {
      interruption_point(looks_at_once);
      if (turn < 1000) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    }
  }

 private:
  static constexpr int64_t looks_at_once = int64_t(1) << 40;  // large enough that every call reads the clock

  const std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<int64_t> running_{0};
};

using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Result lm_solve(const at::Tensor& theta, const at::Tensor& x, const at::Tensor& y, const at::Tensor& which,
                std::string_view kind, at::IntArrayRef sizes, std::string_view activation,
                c10::List<bool> biases, double start, double down, double up, double progress, int64_t stall,
                int64_t iterations, double tol, bool first) {
  const LmDamping damping{start, down, up, progress, stall, iterations, tol};
  const LmArguments args =
      read_lm_arguments(theta, x, y, which, kind, sizes, activation, biases, damping);
  const LmModel& model = args.model;
  const int64_t S = args.theta.size(0), n = args.x.size(1);
  const auto doubles = at::TensorOptions(at::kDouble), integers = at::TensorOptions(at::kLong);
  Result result{args.theta.clone(at::MemoryFormat::Contiguous), at::full({S}, std::numeric_limits<double>::infinity(), doubles),
                at::full({S}, int64_t{0}, integers),
                at::full({S}, static_cast<int64_t>(LmStatus::skipped), integers)};
  auto& [final_theta, loss, counts, status] = result;

  LmQueue queue(args.which.const_data_ptr<int64_t>(), S, args.x.size(0), first);
  const LmWork work{&model,
                    damping,
                    n,
                    args.theta.const_data_ptr<double>(),
                    args.x.const_data_ptr<double>(),
                    args.y.const_data_ptr<double>(),
                    args.which.const_data_ptr<int64_t>(),
                    &queue,
                    final_theta.mutable_data_ptr<double>(),
                    loss.mutable_data_ptr<double>(),
                    counts.mutable_data_ptr<int64_t>(),
                    status.mutable_data_ptr<int64_t>()};
  // As many workers as threads, each with an equal share at first, so that even few starts use all threads.
  const double shorter = static_cast<double>(std::min(n * model.outputs, model.parameters));
  const double per_start = 10.0 * static_cast<double>(n * model.outputs * model.parameters) * shorter;
  const auto deserved =
      1 + static_cast<int64_t>(std::min(static_cast<double>(S) * per_start / thread_work, 1e6));
  const int64_t workers = std::min({S, deserved, static_cast<int64_t>(at::get_num_threads())});
  const int64_t numbers = lm_kernels().scratch(model, n);
  const double bytes = 8.0 * static_cast<double>(numbers) * static_cast<double>(workers);
  TORCH_CHECK(fits_memory(bytes), op, ": the Jacobians of ", workers * lm_kernels().lanes, " simultaneous starts, of ",
              n * model.outputs, " residuals and ", model.parameters,
              " parameters, with the matrices computed from them, ", beyond_memory(bytes));
  Workers at_work;
  parallel_for(workers, 1, [&](int64_t begin, int64_t end) {
    {
      const Workers::Guard guard(at_work);
      const AlignedDoubles scratch = aligned_doubles(numbers);
      for (int64_t worker = begin; worker < end; ++worker) {
        lm_kernels().run(work, ceil_div(S, workers), scratch.get());
      }
    }
    at_work.wait_if_caller();
  });

  // Which starts after the first success were begun or finished depends on the threads. They are reset to
  // "skipped".
  for (int64_t s = 0; s < S; ++s) {
    if (!queue.obsolete(s)) continue;
    std::copy_n(work.theta + s * model.parameters, model.parameters, work.final_theta + s * model.parameters);
    work.loss[s] = std::numeric_limits<double>::infinity();
    work.iterations[s] = 0;
    work.status[s] = static_cast<int64_t>(LmStatus::skipped);
  }
  return result;
}

}  // namespace
}  // namespace llr

TORCH_LIBRARY_IMPL(llr, CPU, m) {
  m.impl("lm_solve", &llr::Interruptible<"lm_solve", &llr::lm_solve>::call);
}
