#include "lanes.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/cpu/simd.h"

#if LLR_X86_DISPATCH
#include <immintrin.h>
#endif

namespace llr {

#define LLR_PER_LEVEL "svdvals/cpu/lanes.inc"
#include "common/cpu/per_level.inc"

const LaneKernels& lane_kernels() { LLR_PICK(kernels) }

}  // namespace llr
