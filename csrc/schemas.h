// The operators' schemas, used by the library and by the tests' emulation of its CUDA part.
#pragma once

#include <torch/library.h>

namespace llr {

inline void define_operators(torch::Library& m) {
  // The out overload returns nothing: torch.compile does not support custom operators that return an
  // argument.
  m.def(
      "mlp_jacobian(Tensor x, Tensor[] weights, Tensor?[] biases, str activation, "
      "int[]? columns=None) -> Tensor");
  m.def(
      "mlp_jacobian.out(Tensor x, Tensor[] weights, Tensor?[] biases, str activation, "
      "int[]? columns=None, *, Tensor(a!) out) -> ()");
  m.def(
      "_mlp_jacobian_formula(Tensor x, Tensor[] weights, Tensor?[] biases, str activation, "
      "int[]? columns=None) -> Tensor");
  m.def("first_nonfinite(Tensor[] tensors) -> int");
  m.def(
      "mlp_gram(Tensor x, Tensor[] weights, Tensor?[] biases, str activation, int[]? columns=None, "
      "bool double_double=False) -> Tensor");
  // The same, and for each row of the Jacobian (sample and output) a bound of its error as computed in
  // float64.
  m.def(
      "mlp_jacobian_with_error(Tensor x, Tensor[] weights, Tensor?[] biases, str activation, "
      "int[]? columns=None) -> (Tensor, Tensor)");
  m.def(
      "mlp_gram_with_error(Tensor x, Tensor[] weights, Tensor?[] biases, str activation, "
      "int[]? columns=None, bool double_double=False) -> (Tensor, Tensor)");
  m.def("gram_add_(Tensor(a!) K, Tensor delta, Tensor a, bool bias, bool weight) -> ()");
  m.def("gram_factor(Tensor K) -> Tensor");
  m.def("svdvals(Tensor A, *, int sweeps=100) -> Tensor");
  m.def(
      "lm_solve(Tensor theta, Tensor x, Tensor y, Tensor which, str kind, int[] sizes, str activation, "
      "bool[] biases, *, float damping=1.0, float down=0.2, float up=3.0, float progress=0.0, int stall=20, "
      "int iterations=160, float tol=1e-20, bool first=False) "
      "-> (Tensor theta, Tensor loss, Tensor iterations, Tensor status)");
}

}  // namespace llr
