// The operators' schemas and the small module that tells how this library was built. Nothing else:
// implementations register themselves from csrc/cpu (and csrc/cuda).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>
#include <torch/version.h>

#include <map>
#include <string>
#include <vector>

#include "cpu/simd.h"

TORCH_LIBRARY(llr, m) {
  // The out overload returns nothing: torch.compile takes no custom operator that returns its argument.
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
  m.def("gram_add_(Tensor(a!) K, Tensor delta, Tensor a, bool bias, bool weight) -> ()");
  m.def("gram_factor(Tensor K) -> Tensor");
  m.def("svdvals(Tensor A, *, int sweeps=100) -> Tensor");
}

namespace {

#define LLR_STRINGIFY_(x) #x
#define LLR_STRINGIFY(x) LLR_STRINGIFY_(x)

std::map<std::string, std::string> build_info() {
  return {
#if defined(__clang__)
      {"compiler", "clang " __clang_version__},
#elif defined(__GNUC__)
      {"compiler", "gcc " __VERSION__},
#elif defined(_MSC_VER)
      {"compiler", "msvc " LLR_STRINGIFY(_MSC_VER)},
#else
      {"compiler", "unknown"},
#endif
      {"torch", TORCH_VERSION},
#ifdef LLR_CUDA_ARCHS
      {"cuda_archs", LLR_STRINGIFY(LLR_CUDA_ARCHS)},
#else
      {"cuda_archs", ""},
#endif
#ifdef _OPENMP
      {"openmp", LLR_STRINGIFY(_OPENMP)},
#else
      {"openmp", ""},
#endif
      {"simd_compiled", llr::simd_levels_compiled()},
      {"simd_running", llr::simd_level_name(llr::simd_level())},
  };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "How the native part of llr was built; loading it registers torch.ops.llr.";
  m.def("build_info", &build_info,
        "Compiler, torch version, CUDA architectures and SIMD levels of this build, as text.");
}
