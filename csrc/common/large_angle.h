// sin and cos of angles of any size, for the host and for the device.
//
// An angle z = m 2^e, with m an integer of 53 bits, is converted to quarter turns by a product with 2/pi.
// Only 192 bits of 2/pi matter. The bits before them contribute multiples of four quarter turns; the bits
// after them contribute less than 2^-137 of a quarter turn, and no double lies closer to a multiple of pi/2
// than about 2^-61 of a quarter turn.
//
// Source: M. H. Payne and R. N. Hanek, "Radian reduction for trigonometric functions", SIGNUM Newsletter 18
// (1983).
#pragma once

#include "activation.h"

namespace llr {
namespace detail {

// 2/pi as a binary fraction, after 64 zero bits.
#define LLR_TWO_OVER_PI                                                                                 \
  {                                                                                                     \
    0, 0xa2f9836e4e441529, 0xfc2757d1f534ddc0, 0xdb6295993c439041, 0xfe5163abdebbc561,                  \
        0xb7246e3a424dd2e0, 0x06492eea09d1921c, 0xfe1deb1cb129a73e, 0xe88235f52ebb4484,                 \
        0xe99c7026b45f7e41, 0x3991d639835339f4, 0x9c845f8bbdf9283b, 0x1ff897ffde05980f,                 \
        0xef2f118b5a0a6d1f, 0x6d367ecf27cb09b7, 0x4f463f669e5fea2d, 0x7527bac7ebe5f17b,                 \
        0x3d0739f78a5292ea, 0x6bfb5fb11f8d5d08, 0x56033046fc7b6bab                                      \
  }
#if defined(__CUDACC__)
static __constant__ const uint64_t two_over_pi_device[20] = LLR_TWO_OVER_PI;  // no copy in local memory
#endif
constexpr uint64_t two_over_pi_host[20] = LLR_TWO_OVER_PI;

LLR_HD uint64_t two_over_pi(int64_t word) {
#if defined(__CUDA_ARCH__)
  return two_over_pi_device[word];
#else
  return two_over_pi_host[word];
#endif
}

LLR_HD uint64_t high_product(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

// 64 bits of two_over_pi, from bit `first` on.
LLR_HD uint64_t bits_of_two_over_pi(int64_t first) {
  const int64_t word = first >> 6;
  const int shift = static_cast<int>(first & 63);
  const uint64_t next = shift == 0 ? 0 : two_over_pi(word + 1) >> (64 - shift);
  return two_over_pi(word) << shift | next;
}

}  // namespace detail

// sin and cos of |z| >= 1; NaN for an infinity.
LLR_HD Pair sin_of_large(double z) {
  using namespace detail;
  const int64_t pattern = bits(magnitude(z));
  const int64_t exponent = (pattern >> 52) - 1075;  // z = m 2^exponent
  if (exponent > 971) return {z - z, z - z};
  const uint64_t m = (static_cast<uint64_t>(pattern) & ((uint64_t(1) << 52) - 1)) | uint64_t(1) << 52;
  // Bit i of the fraction has the weight 2^-(i - 63), so that the bits from `first` on give less than four
  // quarter turns.
  const int64_t first = exponent + 62;
  const uint64_t w0 = bits_of_two_over_pi(first), w1 = bits_of_two_over_pi(first + 64);
  const uint64_t w2 = bits_of_two_over_pi(first + 128);
  const uint64_t low = m * w2;
  const uint64_t middle = m * w1 + high_product(m, w2);
  const uint64_t carry = middle < high_product(m, w2) ? 1 : 0;
  const uint64_t high = m * w0 + high_product(m, w1) + carry;
  // Two bits of quarter turns, then a fraction; rounding to the nearest quarter turn leaves it in [-1/2,
  // 1/2].
  uint64_t f = high << 2 | middle >> 62, rest = middle << 2 | low >> 62;
  const bool beyond = f >> 63 != 0;
  int64_t quarter = static_cast<int64_t>(high >> 62) + (beyond ? 1 : 0);
  if (beyond) {
    rest = ~rest + 1;
    f = ~f + (rest == 0 ? 1 : 0);
  }
  // The fraction in two parts, and pi/2 with the 53 bits after those of a double.
  const double upper = static_cast<double>(f >> 11) * 0x1p-53;
  const double lower = static_cast<double>(f & 2047) * 0x1p-64 + static_cast<double>(rest) * 0x1p-128;
  const double r = upper * 1.57079632679489661923 + (upper * 6.123233995736766e-17 + lower * 1.5707963267948966);
  const bool negative = (z < 0.0) != beyond;
  if (z < 0.0) quarter = -quarter;
  return quarter_turns(quarter, negative ? -r : r);
}

// activate<Activation::sin> for every angle.
LLR_HD Pair sin_anywhere(double z) {
  return sin_is_large(z) ? sin_of_large(z) : activate<Activation::sin>(z);
}

}  // namespace llr
