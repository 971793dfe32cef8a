// The activation table on the device; the activation is chosen at run time.
#pragma once

#include "common/activation.h"
#include "common/large_angle.h"
#include "common/cuda/kernel.cuh"

namespace llr::cuda {

LLR_DEVICE Pair activate_at(Activation activation, double z) {
  switch (activation) {
    case Activation::identity:
      return llr::activate<Activation::identity>(z);
    case Activation::tanh:
      return llr::activate<Activation::tanh>(z);
    case Activation::sigmoid:
      return llr::activate<Activation::sigmoid>(z);
    case Activation::relu:
      return llr::activate<Activation::relu>(z);
    case Activation::softplus:
      return llr::activate<Activation::softplus>(z);
    case Activation::gelu:
      return llr::activate<Activation::gelu>(z);
    case Activation::silu:
      return llr::activate<Activation::silu>(z);
    case Activation::erf:
      return llr::activate<Activation::erf>(z);
    default:
      return sin_anywhere(z);
  }
}

}  // namespace llr::cuda
