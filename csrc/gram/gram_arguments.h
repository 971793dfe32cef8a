// The arguments of the Gram operators, checked, for every backend.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "common/mlp_arguments.h"

namespace llr {

// (n, q, n, q) or (B, n, q, n, q); with double_double a leading dimension of 2.
std::vector<int64_t> gram_sizes(const MlpArguments& args, bool double_double);

// Throws c10::Error naming what is wrong with the arguments of gram_add_.
void check_gram_add(const at::Tensor& K, const at::Tensor& delta, const at::Tensor& a);

}  // namespace llr
