// mlp_jacobian under autograd.
//
// Calls that need no derivative of the result go directly to the kernel. Other calls go to
// _mlp_jacobian_formula, the same function in torch operations (llr/operators/formula.py, registered in
// llr/operators/_ops.py). Because it consists of torch operations, it has derivatives of every kind and
// order: backward, forward-mode, and inside torch.func's transforms.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <vector>

#include "common/mlp_arguments.h"

namespace llr {
namespace {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;
using MlpJacobian = at::Tensor(const at::Tensor&, at::TensorList, const OptionalTensors&, std::string_view,
                               at::OptionalIntArrayRef);

bool has_derivative(const at::Tensor& t) {
  return (at::GradMode::is_enabled() && t.requires_grad()) || t._fw_grad(/*level=*/0).defined();
}

// Symbolic shapes, as torch.compile traces them, are checked by the fake kernel.
bool is_symbolic(const at::Tensor& t) { return t.unsafeGetTensorImpl()->has_symbolic_sizes_strides(); }

at::Tensor mlp_jacobian_autograd(const at::Tensor& x, at::TensorList weights,
                                 const OptionalTensors& biases, std::string_view activation,
                                 at::OptionalIntArrayRef columns) {
  bool differentiated = has_derivative(x), symbolic = is_symbolic(x), negated = x.is_neg();
  const auto look_at = [&](const at::Tensor& t) {
    differentiated |= has_derivative(t);
    symbolic |= is_symbolic(t);
    negated |= t.is_neg();
  };
  for (const at::Tensor& w : weights) look_at(w);
  for (const std::optional<at::Tensor>& b : biases) {
    if (b.has_value()) look_at(*b);
  }
  if (differentiated) {
    if (!symbolic) (void)check_mlp_arguments("mlp_jacobian", x, weights, biases, activation, columns);
    static const auto formula = c10::Dispatcher::singleton()
                                    .findSchemaOrThrow("llr::_mlp_jacobian_formula", "")
                                    .typed<MlpJacobian>();
    if (!negated) return formula.call(x, weights, biases, activation, columns);
    // Forward-mode differentiation fails for views of a lazily negated tensor.
    std::vector<at::Tensor> resolved;
    OptionalTensors resolved_biases;
    for (const at::Tensor& w : weights) resolved.push_back(w.resolve_neg());
    for (const std::optional<at::Tensor>& b : biases) {
      resolved_biases.push_back(b.has_value() ? std::optional<at::Tensor>(b->resolve_neg()) : b);
    }
    return formula.call(x.resolve_neg(), resolved, resolved_biases, activation, columns);
  }
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("llr::mlp_jacobian", "").typed<MlpJacobian>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, weights, biases, activation, columns);
}

}  // namespace
}  // namespace llr

TORCH_LIBRARY_IMPL(llr, Autograd, m) { m.impl("mlp_jacobian", &llr::mlp_jacobian_autograd); }

// The kernels handle lazily negated tensors themselves, and refuse complex ones. (torch's fallbacks overlook
// optional tensors, fail for operators without a result, and copy a tensor that is too large before its size
// is checked.)
#define LLR_FALL_THROUGH(key)                                                                                  \
  TORCH_LIBRARY_IMPL(llr, key, m) {                                                                            \
    for (const char* name : {"mlp_jacobian", "mlp_jacobian.out", "mlp_jacobian_with_error", "mlp_gram",        \
                             "mlp_gram_with_error", "gram_add_", "gram_factor", "svdvals", "lm_solve",         \
                             "first_nonfinite"}) {                                                             \
      m.impl(name, torch::CppFunction::makeFallthrough());                                                     \
    }                                                                                                          \
  }
LLR_FALL_THROUGH(Negative)
LLR_FALL_THROUGH(Conjugate)
