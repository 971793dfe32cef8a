// Matrix products inside parallel tasks: each on one thread, with the same bits on any thread.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "interrupt.h"

namespace llr {

// As long as the object lives, the BLAS library runs products on the calling thread alone. Inside a parallel
// region it would do so anyway, but it would divide the product as if for several threads, which changes the
// rounding.
class OneBlasThread {
 public:
  OneBlasThread();
  ~OneBlasThread();
  OneBlasThread(const OneBlasThread&) = delete;
  OneBlasThread& operator=(const OneBlasThread&) = delete;

 private:
  int previous_;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The least work, in numbers written or multiply-adds, for which one more thread is worthwhile.
constexpr int64_t thread_work = 32768;

// Runs f(i) for i in [0, count). `work`, the total of all tasks, decides how many threads are used.
template <typename F>
void parallel_tasks(int64_t count, int64_t work, const F& f) {
  if (count <= 0) return;
  const int64_t grain = std::max<int64_t>(1, count * thread_work / std::max<int64_t>(work, 1));
  const int64_t each = std::max<int64_t>(1, work / count);
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const OneBlasThread one_thread;
    for (int64_t i = begin; i < end; ++i) {
      interruption_point(each);
      f(i);
    }
  });
}

// c (m, n; rows ldc apart) += a (m, k; rows lda apart) b (k, n; rows row_stride apart, columns
// column_stride). To be called from parallel_tasks.
void multiply_add(double* c, int64_t ldc, const double* a, int64_t lda, const double* b,
                  int64_t row_stride, int64_t column_stride, int64_t m, int64_t n, int64_t k);

// A rows x columns piece of a matrix as doubles: the matrix itself if it holds doubles, else a copy.
class Panel {
 public:
  Panel(const double* w, int64_t stride, int64_t, int64_t) : data(w), stride(stride) {}
  Panel(const float* w, int64_t stride, int64_t rows, int64_t columns)
      : copy_(rows * columns), data(copy_.data()), stride(columns) {
    for (int64_t i = 0; i < rows; ++i) std::copy_n(w + i * stride, columns, &copy_[i * columns]);
  }

 private:
  std::vector<double> copy_;

 public:
  const double* const data;
  const int64_t stride;
};

}  // namespace llr
