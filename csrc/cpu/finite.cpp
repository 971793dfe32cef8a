// torch.ops.llr.first_nonfinite on the CPU: one pass over the numbers, no temporaries.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "../mlp_arguments.h"
#include "kernels.h"

namespace llr {
namespace {

// The index of the first tensor with a NaN or an infinity, -1 if there is none.
int64_t first_nonfinite(at::TensorList tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& t = tensors[i];
    TORCH_CHECK(t.scalar_type() == at::kDouble || t.scalar_type() == at::kFloat,
                "first_nonfinite: tensors[", i, "] is ", t.scalar_type(), "; expected float32 or float64");
    at::Tensor once = t;  // without the repetitions of an expanded tensor, which may be larger than memory
    for (int64_t d = 0; d < t.dim(); ++d) {
      if (t.stride(d) == 0 && t.size(d) > 1) once = once.narrow(d, 0, 1);
    }
    const at::Tensor dense = readable(once);
    const bool finite =
        dense.scalar_type() == at::kDouble
            ? math_kernels().all_finite_double(dense.const_data_ptr<double>(), dense.numel())
            : math_kernels().all_finite_float(dense.const_data_ptr<float>(), dense.numel());
    if (!finite) return static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace
}  // namespace llr

TORCH_LIBRARY_IMPL(llr, CPU, m) { m.impl("first_nonfinite", &llr::first_nonfinite); }
