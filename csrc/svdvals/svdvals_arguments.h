// The arguments of svdvals, checked, for every backend.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace llr {

inline void check_svdvals(const at::Tensor& A, int64_t sweeps) {
  TORCH_CHECK(A.scalar_type() == at::kDouble || A.scalar_type() == at::kFloat, "svdvals: A is ",
              A.scalar_type(), "; expected float32 or float64");
  TORCH_CHECK(A.dim() >= 2, "svdvals: A has shape ", A.sizes(), "; expected (..., m, n)");
  TORCH_CHECK(sweeps >= 0 && sweeps <= 1000, "svdvals: sweeps is ", sweeps, "; expected 0 to 1000");
}

}  // namespace llr
