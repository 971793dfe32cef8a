// Error messages for tensors that an operator has no kernel for: sparse, quantized and nested tensors, other
// devices. Otherwise torch's dispatcher would print a list of its own kernels.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/Layout.h>
#include <torch/library.h>

#include <sstream>
#include <string>

namespace llr {
namespace {

// What is unusual about a tensor; empty if nothing is.
std::string peculiarity(const at::Tensor& t) {
  std::ostringstream text;
  if (t.is_nested()) {
    text << "is nested";
  } else if (t.is_quantized()) {
    text << "is quantized";
  } else if (t.layout() != at::kStrided) {
    text << "has the layout " << t.layout();
  } else if (!t.is_cpu()) {
    text << "is on " << t.device();
  }
  return text.str();
}

std::string name_of(const c10::OperatorHandle& op) {
  const std::string& name = op.schema().name();
  return name.substr(name.find("::") + 2);
}

void refuse(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  const std::string name = name_of(op);
  const auto values = torch::jit::last(*stack, schema.arguments().size());
  const auto check = [&](const at::Tensor& t, const std::string& argument) {
    const std::string found = t.defined() ? peculiarity(t) : "";
    TORCH_CHECK(found.empty(), name, ": ", argument, " ", found,
                "; expected a strided tensor of numbers, on the CPU or on a GPU that this build has kernels for");
  };
  for (size_t i = 0; i < values.size(); ++i) {
    const std::string& argument = schema.arguments()[i].name();
    if (values[i].isTensor()) check(values[i].toTensor(), argument);
    if (!values[i].isList()) continue;
    const auto list = values[i].toListRef();
    for (size_t k = 0; k < list.size(); ++k) {
      if (list[k].isTensor()) check(list[k].toTensor(), argument + "[" + std::to_string(k) + "]");
    }
  }
  TORCH_CHECK(false, name, ": no kernel for these tensors; expected strided ones, all on the CPU or on one GPU");
}

// For operators that functorch cannot call once for every sample: they write into an argument, or take lists.
template <const char* const& advice>
void refuse_vmap(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK(false, name_of(op), ": torch.vmap does not support this operator; ", advice);
}

constexpr const char* without_out = "mlp_jacobian without out can";
constexpr const char* own_batch = "pass a batch of parameter points instead, as weights of shape (B, out, in)";
constexpr const char* in_place = "add to one matrix after the other";
constexpr const char* one_answer = "it returns one number for all tensors of its list";

int64_t first_nonfinite_of_others(at::TensorList tensors) {
  TORCH_CHECK(tensors.empty(), "first_nonfinite: tensors[0] is on ", tensors[0].device(), " and has the layout ",
              tensors[0].layout(), "; expected strided tensors on the CPU");
  return -1;
}

void register_refusals(torch::Library& m) {
  for (const char* name : {"mlp_jacobian", "mlp_jacobian.out", "mlp_jacobian_with_error", "mlp_gram",
                           "mlp_gram_with_error", "gram_add_", "gram_factor", "svdvals", "lm_solve"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse>());
  }
}

}  // namespace
}  // namespace llr

TORCH_LIBRARY_IMPL(llr, CompositeExplicitAutograd, m) {
  llr::register_refusals(m);
  m.impl("first_nonfinite", &llr::first_nonfinite_of_others);
}

TORCH_LIBRARY_IMPL(llr, FuncTorchBatched, m) {
  using torch::CppFunction;
  m.impl("mlp_jacobian.out", CppFunction::makeFromBoxedFunction<&llr::refuse_vmap<llr::without_out>>());
  for (const char* name : {"mlp_gram", "mlp_gram_with_error", "mlp_jacobian_with_error"}) {
    m.impl(name, CppFunction::makeFromBoxedFunction<&llr::refuse_vmap<llr::own_batch>>());
  }
  m.impl("gram_add_", CppFunction::makeFromBoxedFunction<&llr::refuse_vmap<llr::in_place>>());
  m.impl("first_nonfinite", CppFunction::makeFromBoxedFunction<&llr::refuse_vmap<llr::one_answer>>());
}

#define LLR_REFUSE(key)                                                                       \
  TORCH_LIBRARY_IMPL(llr, key, m) {                                                           \
    llr::register_refusals(m);                                                                \
    m.impl("first_nonfinite", torch::CppFunction::makeFromBoxedFunction<&llr::refuse>());     \
  }
LLR_REFUSE(AutogradNestedTensor)
LLR_REFUSE(NestedTensorCPU)
LLR_REFUSE(NestedTensorCUDA)
LLR_REFUSE(NestedTensorMeta)
