// The arguments of lm_solve, checked and in one form.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <string_view>

#include "lm/lm_model.h"

namespace llr {

struct LmArguments {
  LmModel model;
  // All contiguous and aligned.
  at::Tensor theta;  // (S, P)
  at::Tensor x;      // (B, n, inputs)
  at::Tensor y;      // (B, n, outputs)
  at::Tensor which;  // (S)
};

// Throws c10::Error naming the offending argument and its shape.
LmArguments read_lm_arguments(const at::Tensor& theta, const at::Tensor& x, const at::Tensor& y,
                              const at::Tensor& which, std::string_view kind, at::IntArrayRef sizes,
                              std::string_view activation, const c10::List<bool>& biases,
                              const LmDamping& damping);

}  // namespace llr
