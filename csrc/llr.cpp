// Defines the operators, and the small module that reports how this library was built. The implementations
// register themselves, in the folders cpu and cuda of each operator.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <map>
#include <string>
#include <vector>

#include "common/cpu/simd.h"
#include "schemas.h"

TORCH_LIBRARY(llr, m) { llr::define_operators(m); }

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
