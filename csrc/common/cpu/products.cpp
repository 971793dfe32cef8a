#include "products.h"

#include <ATen/CPUFunctions.h>
#include <ATen/ops/from_blob.h>

#include "kernels.h"

#if defined(__GNUC__) || defined(__clang__)
// Exists if torch is built with MKL. With any other BLAS the symbol is absent and its address is null.
extern "C" int MKL_Set_Num_Threads_Local(int) __attribute__((weak));
#define LLR_MKL_THREADS(n) (MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(n) : 0)
#else
#define LLR_MKL_THREADS(n) 0
#endif

namespace llr {
namespace {

// Up to this many multiply-adds our own loop takes less time than the overhead of a call of ATen.
constexpr int64_t small_product = 1 << 14;

at::Tensor view(const double* p, int64_t rows, int64_t columns, int64_t row_stride,
                int64_t column_stride) {
  return at::from_blob(const_cast<double*>(p), {rows, columns}, {row_stride, column_stride},
                       at::TensorOptions(at::kDouble));
}

}  // namespace

OneBlasThread::OneBlasThread() {
  // ATen's first call on a new thread sets the BLAS library's number of threads. It must happen before we set
  // the number, or it would undo ours (LAPACK then waits forever for threads that a parallel region cannot
  // give it).
  (void)at::get_num_threads();
  previous_ = LLR_MKL_THREADS(1);
}
OneBlasThread::~OneBlasThread() { (void)LLR_MKL_THREADS(previous_); }

void multiply_add(double* c, int64_t ldc, const double* a, int64_t lda, const double* b,
                  int64_t row_stride, int64_t column_stride, int64_t m, int64_t n, int64_t k) {
  if (m * n * k > small_product && k > 4) {
    at::Tensor out = view(c, m, n, ldc, 1);
    at::cpu::addmm_out(out, out, view(a, m, k, lda, 1), view(b, k, n, row_stride, column_stride));
    return;
  }
  std::vector<double> rows;
  if (column_stride != 1) {
    rows.resize(n * k);
    for (int64_t p = 0; p < k; ++p) {
      for (int64_t j = 0; j < n; ++j) rows[p * n + j] = b[p * row_stride + j * column_stride];
    }
    b = rows.data();
    row_stride = n;
  }
  math_kernels().multiply_add(c, ldc, a, lda, b, row_stride, m, n, k);
}

}  // namespace llr
