#include "allocate.h"

#include <ATen/ops/empty.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "common/memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace llr {
namespace {

constexpr uintptr_t huge_page = uintptr_t(2) << 20;
constexpr size_t cache_line = 64;

}  // namespace

void FreeAligned::operator()(double* p) const { ::operator delete[](p, std::align_val_t(cache_line)); }

AlignedDoubles aligned_doubles(int64_t count) {
  if (!fits_memory(static_cast<double>(count) * sizeof(double))) throw std::bad_alloc();
  const size_t bytes = static_cast<size_t>(count) * sizeof(double);
  return AlignedDoubles(static_cast<double*>(::operator new[](bytes, std::align_val_t(cache_line))));
}

void check_result(const char* op, at::IntArrayRef sizes, at::ScalarType dtype) {
  double bytes = static_cast<double>(c10::elementSize(dtype));
  for (const int64_t size : sizes) bytes *= static_cast<double>(size);
  TORCH_CHECK(fits_memory(bytes), op, ": a result of shape ", sizes, " ", beyond_memory(bytes));
}

at::Tensor empty_result(const char* op, at::IntArrayRef sizes, at::ScalarType dtype) {
  check_result(op, sizes, dtype);
  at::Tensor result = at::empty(sizes, at::TensorOptions(dtype));
#if defined(__linux__)
  // Only advice, for whole huge pages. The memory still belongs to malloc, which reuses blocks of up to 32 MB
  // without returning them to the system; reused blocks cause no page faults.
  const auto begin = reinterpret_cast<uintptr_t>(result.data_ptr());
  const uintptr_t first = (begin + huge_page - 1) / huge_page * huge_page;
  const uintptr_t last = (begin + result.nbytes()) / huge_page * huge_page;
  if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return result;
}

}  // namespace llr
