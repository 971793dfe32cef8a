// Memory for results and for scratch.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

namespace llr {

struct FreeAligned {
  void operator()(double* p) const;
};
using AlignedDoubles = std::unique_ptr<double[], FreeAligned>;

// Uninitialised, on a cache-line boundary: BLAS results may depend on alignment, and must not vary. Throws std::bad_alloc.
AlignedDoubles aligned_doubles(int64_t count);

// Throws where no memory holds a result of this operator.
void check_result(const char* op, at::IntArrayRef sizes, at::ScalarType dtype);

// An uninitialised contiguous tensor; one above 2 MB lies on huge pages where the system has them for the
// asking (a fresh 300 MB result is 70,000 page faults otherwise, slower than computing it).
at::Tensor empty_result(const char* op, at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace llr
