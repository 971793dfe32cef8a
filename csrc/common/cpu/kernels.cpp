#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

#include "simd.h"

#if LLR_X86_DISPATCH
#include <immintrin.h>
#endif

namespace llr {

#define LLR_PER_LEVEL "common/cpu/kernels.inc"
#include "per_level.inc"

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
