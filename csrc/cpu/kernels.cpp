#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "simd.h"

#if LLR_X86_DISPATCH
#include <immintrin.h>
#endif

namespace llr {

namespace baseline {
namespace {
#include "kernels.inc"
}
}  // namespace baseline

#if LLR_X86_DISPATCH

// All headers are included above, outside these regions: no function of the standard library is compiled
// for a processor that may not be there.
#define LLR_STREAM_256
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
namespace {
#include "kernels.inc"
}
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef LLR_STREAM_256

#define LLR_STREAM_512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,prefer-vector-width=512")
#endif
namespace avx512 {
namespace {
#include "kernels.inc"
}
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef LLR_STREAM_512

#endif  // LLR_X86_DISPATCH

#if LLR_X86_DISPATCH
#define LLR_PICK(what)                                             \
  switch (simd_level()) {                                          \
    case Simd::avx512:                                             \
      return avx512::what;                                         \
    case Simd::avx2:                                               \
      return avx2::what;                                           \
    default:                                                       \
      return baseline::what;                                       \
  }
#else
#define LLR_PICK(what) return baseline::what;
#endif

template <>
const Kernels<float>& row_kernels<float>() {
  LLR_PICK(float_rows)
}

template <>
const Kernels<double>& row_kernels<double>() {
  LLR_PICK(double_rows)
}

const MathKernels& math_kernels() { LLR_PICK(math) }

}  // namespace llr
