#include "error_bound.h"

#include <cmath>
#include <cstring>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "common/cpu/simd.h"

namespace llr {

#define LLR_PER_LEVEL "signals/cpu/error_bound.inc"
#include "common/cpu/per_level.inc"

const ErrorKernels& error_kernels() { LLR_PICK(error_table) }

}  // namespace llr
