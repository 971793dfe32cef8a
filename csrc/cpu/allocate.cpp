#include "allocate.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace llr {
namespace {

constexpr size_t huge_page = size_t(2) << 20;
constexpr size_t cache_line = 64;

void* allocate_aligned(size_t alignment, size_t bytes) {
#if defined(_WIN32)
  return _aligned_malloc(bytes, alignment);
#else
  void* p = nullptr;
  return posix_memalign(&p, alignment, bytes) == 0 ? p : nullptr;
#endif
}

void free_aligned(void* p) {
#if defined(_WIN32)
  _aligned_free(p);
#else
  std::free(p);
#endif
}

}  // namespace

void FreeAligned::operator()(double* p) const { free_aligned(p); }

AlignedDoubles aligned_doubles(int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(double);
  auto* p = static_cast<double*>(allocate_aligned(cache_line, bytes == 0 ? cache_line : bytes));
  if (p == nullptr) throw std::bad_alloc();
  return AlignedDoubles(p);
}

at::Tensor empty_result(at::IntArrayRef sizes, at::ScalarType dtype) {
  const auto options = at::TensorOptions(dtype);
#if defined(__linux__)
  size_t bytes = c10::elementSize(dtype);
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  if (bytes > huge_page) {
    const size_t rounded = (bytes + huge_page - 1) / huge_page * huge_page;
    void* p = allocate_aligned(huge_page, rounded);
    TORCH_CHECK(p != nullptr, "mlp_jacobian: could not allocate ", bytes, " bytes for a result of shape ",
                sizes, "; take fewer samples or parameters at a time");
    // Advice, and harmless where it is not taken.
    (void)madvise(p, rounded, MADV_HUGEPAGE);
    return at::from_blob(p, sizes, free_aligned, options);
  }
#endif
  return at::empty(sizes, options);
}

}  // namespace llr
