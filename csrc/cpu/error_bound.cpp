#include "error_bound.h"

#include <cmath>
#include <cstring>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "simd.h"

namespace llr {

#define LLR_PER_LEVEL "error_bound.inc"
#include "per_level.inc"

const ErrorKernels& error_kernels() { LLR_PICK(error_table) }

}  // namespace llr
