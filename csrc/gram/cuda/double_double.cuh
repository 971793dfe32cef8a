// Double-double arithmetic on the device: a number is an unevaluated sum high + low of two doubles, 106 bits
// together. The same as csrc/gram/cpu/double_double.inc.
#pragma once

#include "common/cuda/kernel.cuh"

namespace llr::cuda {

// Sums and products, each rounded separately. nvcc would fuse a product and a sum, and then the errors
// computed below would not be the errors made.
LLR_DEVICE double rounded_sum(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

LLR_DEVICE double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

struct Dd {
  double high, low;
};

LLR_DEVICE Dd two_sum(double a, double b) {
  const double s = rounded_sum(a, b), bb = rounded_sum(s, -a);
  return {s, rounded_sum(rounded_sum(a, -rounded_sum(s, -bb)), rounded_sum(b, -bb))};
}

LLR_DEVICE Dd two_product(double a, double b) {
  const double p = rounded_product(a, b);
  return {p, fma(a, b, -p)};
}

// requires |a| >= |b|
LLR_DEVICE Dd normalised(double a, double b) {
  const double s = rounded_sum(a, b);
  return {s, rounded_sum(b, -rounded_sum(s, -a))};
}

LLR_DEVICE Dd operator+(Dd a, Dd b) {
  const Dd high = two_sum(a.high, b.high), low = two_sum(a.low, b.low);
  const Dd sum = normalised(high.high, rounded_sum(high.low, low.high));
  return normalised(sum.high, rounded_sum(sum.low, low.low));
}

LLR_DEVICE Dd operator*(Dd a, Dd b) {
  const Dd p = two_product(a.high, b.high);
  return normalised(p.high, p.low + (a.high * b.low + a.low * b.high));
}

// The arithmetic of a Gram matrix's entries: plain doubles, or double-doubles. Running sums are normalised
// only by `finished`.
struct Plain {
  static constexpr int parts = 1;
  static constexpr int threads = 256, across = 16;  // of a block that computes a tile of 32 rows: four entries each
  using Number = double;
  static LLR_DEVICE double number(double high, double) { return high; }
  static LLR_DEVICE void add_product(double& sum, double x, double y) { sum = fma(x, y, sum); }
  static LLR_DEVICE double finished(double sum) { return sum; }
};

struct DoubleDouble {
  static constexpr int parts = 2;
  static constexpr int threads = 512, across = 16;  // two entries each, for they take more registers
  using Number = Dd;
  static LLR_DEVICE Dd number(double high, double low) { return {high, low}; }
  static LLR_DEVICE void add_product(Dd& sum, double x, double y) {
    const Dd p = two_product(x, y), s = two_sum(sum.high, p.high);
    sum.high = s.high;
    sum.low = rounded_sum(sum.low, rounded_sum(s.low, p.low));
  }
  static LLR_DEVICE Dd finished(Dd sum) { return normalised(sum.high, sum.low); }
};

LLR_DEVICE double high_part(double x) { return x; }
LLR_DEVICE double low_part(double) { return 0.0; }
LLR_DEVICE double high_part(Dd x) { return x.high; }
LLR_DEVICE double low_part(Dd x) { return x.low; }

}  // namespace llr::cuda
