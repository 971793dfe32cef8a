// Finds NaN and infinity.
#pragma once

#include <ATen/core/Tensor.h>

namespace llr {

// Whether all numbers of a readable() tensor of floats or doubles are finite.
bool all_finite(const at::Tensor& dense);

}  // namespace llr
