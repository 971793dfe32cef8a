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

// Uninitialised, on a cache-line boundary: BLAS results may depend on alignment, and must not vary. Throws
// std::bad_alloc.
AlignedDoubles aligned_doubles(int64_t count);

// Throws if a result of this size does not fit in this machine's memory. `op` names the operator in the
// message.
void check_result(const char* op, at::IntArrayRef sizes, at::ScalarType dtype);

// An uninitialised contiguous tensor. Above 2 MB it uses huge pages if the system grants them on request
// (otherwise a fresh 300 MB result causes 70,000 page faults, which take longer than computing it).
at::Tensor empty_result(const char* op, at::IntArrayRef sizes, at::ScalarType dtype);

}  // namespace llr
