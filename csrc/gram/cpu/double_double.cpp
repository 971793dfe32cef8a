#include "double_double.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/cpu/simd.h"

#if LLR_X86_DISPATCH
#include <immintrin.h>
#endif

// The error-free transformations below need every sum and product rounded by itself.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

namespace llr {

#define LLR_PER_LEVEL "gram/cpu/double_double.inc"
#include "common/cpu/per_level.inc"

const DoubleDoubleKernels& double_double_kernels() { LLR_PICK(kernels) }

}  // namespace llr
