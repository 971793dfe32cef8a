// torch.ops.llr.first_nonfinite on the CPU: one pass over the numbers, no temporaries.
#include "finite.h"

#include <torch/library.h>

#include <algorithm>

#include "common/mlp_arguments.h"
#include "common/cpu/interrupt.h"
#include "common/cpu/kernels.h"

namespace llr {

bool all_finite(const at::Tensor& dense) {
  constexpr int64_t at_once = 1 << 24;
  const MathKernels& math = math_kernels();
  const int64_t total = dense.numel();
  for (int64_t first = 0; first < total; first += at_once) {
    interruption_point(at_once);
    const int64_t count = std::min(at_once, total - first);
    const bool finite = dense.scalar_type() == at::kDouble
                            ? math.all_finite_double(dense.const_data_ptr<double>() + first, count)
                            : math.all_finite_float(dense.const_data_ptr<float>() + first, count);
    if (!finite) return false;
  }
  return true;
}

namespace {

// The index of the first tensor with a NaN or an infinity, -1 if there is none.
int64_t first_nonfinite(at::TensorList tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& t = tensors[i];
    TORCH_CHECK(t.scalar_type() == at::kDouble || t.scalar_type() == at::kFloat,
                "first_nonfinite: tensors[", i, "] is ", t.scalar_type(), "; expected float32 or float64");
    at::Tensor once = t;  // without expanded dimensions, which may make it larger than memory
    for (int64_t d = 0; d < t.dim(); ++d) {
      if (t.stride(d) == 0 && t.size(d) > 1) once = once.narrow(d, 0, 1);
    }
    const auto index = static_cast<int64_t>(i);
    if (!all_finite(readable("first_nonfinite", "tensors", once, index))) return index;
  }
  return -1;
}

}  // namespace
}  // namespace llr

TORCH_LIBRARY_IMPL(llr, CPU, m) { 
  m.impl("first_nonfinite", &llr::Interruptible<"first_nonfinite", &llr::first_nonfinite>::call);
}
