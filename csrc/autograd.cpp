// mlp_jacobian under autograd.
//
// Calls that need no gradient go straight on. The others take a detour through _mlp_jacobian, the same
// operator with plain tensor lists: gradients are registered for that one from Python (llr/_ops.py), where
// they are the derivatives of the formula in torch operations; lists of optional tensors cannot be
// registered so.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <vector>

namespace llr {
namespace {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

at::Tensor call_mlp_jacobian(const at::Tensor& x, at::TensorList weights, const OptionalTensors& biases,
                             std::string_view activation, at::OptionalIntArrayRef columns) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("llr::mlp_jacobian", "")
                             .typed<at::Tensor(const at::Tensor&, at::TensorList, const OptionalTensors&,
                                               std::string_view, at::OptionalIntArrayRef)>();
  return op.call(x, weights, biases, activation, columns);
}

// What _mlp_jacobian is below autograd, on every device: mlp_jacobian with the biases put in their places.
at::Tensor mlp_jacobian_of_lists(const at::Tensor& x, at::TensorList weights, at::TensorList present,
                                 c10::List<bool> has_bias, std::string_view activation,
                                 at::OptionalIntArrayRef columns) {
  OptionalTensors biases;
  size_t next = 0;
  for (const bool has : has_bias) {
    biases.push_back(has ? std::optional<at::Tensor>(present[next++]) : std::nullopt);
  }
  return call_mlp_jacobian(x, weights, biases, activation, columns);
}

at::Tensor mlp_jacobian_autograd(const at::Tensor& x, at::TensorList weights,
                                 const OptionalTensors& biases, std::string_view activation,
                                 at::OptionalIntArrayRef columns) {
  bool needs_gradient = x.requires_grad();
  for (const at::Tensor& w : weights) needs_gradient |= w.requires_grad();
  std::vector<at::Tensor> present;
  c10::List<bool> has_bias;
  for (const std::optional<at::Tensor>& b : biases) {
    has_bias.push_back(b.has_value());
    if (!b.has_value()) continue;
    present.push_back(*b);
    needs_gradient |= b->requires_grad();
  }
  if (!needs_gradient || !at::GradMode::is_enabled()) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call_mlp_jacobian(x, weights, biases, activation, columns);
  }
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("llr::_mlp_jacobian", "")
          .typed<at::Tensor(const at::Tensor&, at::TensorList, at::TensorList, c10::List<bool>,
                            std::string_view, at::OptionalIntArrayRef)>();
  return op.call(x, weights, present, has_bias, activation, columns);
}

}  // namespace
}  // namespace llr

TORCH_LIBRARY_IMPL(llr, CompositeExplicitAutograd, m) {
  m.impl("_mlp_jacobian", &llr::mlp_jacobian_of_lists);
}

TORCH_LIBRARY_IMPL(llr, Autograd, m) { m.impl("mlp_jacobian", &llr::mlp_jacobian_autograd); }
