// The activation table: sigma(z) and sigma'(z) together, for the host and for the device.
//
// Everything is in double and free of branches, so that a plain loop over these functions turns into vector
// code at every instruction level, and so that CPU and CUDA run the same arithmetic. Both values come from
// one exponential of a nonpositive argument. sigma' is never formed as 1 - sigma^2: that loses every digit
// where a neuron saturates, and with them the small singular values that decide the rank. Relative errors are
// a few units in the last place, also in the tails (tests/operators/test_activation.py compares with 50
// digits).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define LLR_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__) || defined(__clang__)
#define LLR_HD inline __attribute__((always_inline))
#else
#define LLR_HD inline
#endif

namespace llr {

// The order is the one of activation_names below.
enum class Activation : int { identity, tanh, sigmoid, relu, softplus, gelu, silu, erf, sin };

constexpr const char* activation_names[] = {"identity", "tanh", "sigmoid", "relu", "softplus",
                                            "gelu",     "silu", "erf",     "sin"};
constexpr int activation_count = sizeof(activation_names) / sizeof(activation_names[0]);

namespace detail {

constexpr double round_magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
constexpr double inv_sqrt_pi = 0.56418958354775628695;
constexpr double inv_sqrt_2pi = 0.39894228040143267794;
constexpr double inv_sqrt_2 = 0.70710678118654752440;

LLR_HD int64_t bits(double x) {
  int64_t i;
  memcpy(&i, &x, sizeof i);
  return i;
}

LLR_HD double from_bits(int64_t i) {
  double x;
  memcpy(&x, &i, sizeof x);
  return x;
}

LLR_HD double magnitude(double x) { return from_bits(bits(x) & INT64_C(0x7fffffffffffffff)); }

LLR_HD double with_sign_of(double x, double sign) {
  return from_bits(bits(x) | (bits(sign) & INT64_MIN));
}

// Horner's rule, unrolled by templates: an inner loop that the optimiser does not unroll prevents the
// vectorisation of the caller's loop.
template <int I = 0, int N>
LLR_HD double polynomial(const double (&c)[N], double x) {
  if constexpr (I == N - 1) {
    return c[I];
  } else {
    return polynomial<I + 1>(c, x) * x + c[I];
  }
}

struct Exp {
  double value;       // e^x
  double minus_one;   // e^x - 1, accurate near 0
};

// x <= 0. Values below 1e-307 are returned as 0.
LLR_HD Exp exp_nonpositive(double x) {
  constexpr double c[] = {1.0 / 2,        1.0 / 6,         1.0 / 24,         1.0 / 120,
                          1.0 / 720,      1.0 / 5040,      1.0 / 40320,      1.0 / 362880,
                          1.0 / 3628800,  1.0 / 39916800,  1.0 / 479001600,  1.0 / 6227020800};
  const double shifted = x * 1.44269504088896340736 + round_magic;
  const double k = shifted - round_magic;
  // ln 2 in two parts, the first with 21 trailing zero bits, so that k * high is exact.
  const double r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10;
  const double em1 = r + (r * r) * polynomial(c, r);
  const double scale =
      from_bits(static_cast<int64_t>(static_cast<uint64_t>(bits(shifted) + 1023) << 52));
  const bool gone = x < -707.0;
  return {gone ? 0.0 : scale + scale * em1, gone ? -1.0 : (scale - 1.0) + scale * em1};
}

// ln(1 + e) for 0 <= e <= 1, as 2 artanh(e / (2 + e)).
LLR_HD double log1p_unit(double e) {
  constexpr double c[] = {1.0,      1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11,
                          1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23,
                          1.0 / 25, 1.0 / 27, 1.0 / 29, 1.0 / 31, 1.0 / 33, 1.0 / 35};
  const double s = e / (2.0 + e);
  return 2.0 * s * polynomial(c, s * s);
}

// e^(x^2) erfc(x) for x >= 0: a Chebyshev interpolant of (1 + 2x) e^(x^2) erfc(x) in (x - 4)/(x + 4),
// 26 terms, truncation below 1e-17.
LLR_HD double erfcx(double x) {
  constexpr double c[] = {
      1.2329951186255526,     -0.1396211168405625,    0.01537965210261959,    0.0680970542546913,
      -0.1010390660362999,    0.0937328349984105,     -0.06633036581219905,   0.03716751553632399,
      -0.01619773405968329,   0.0050319699895242515,  -0.000757773262030915,  -0.00019925676026410458,
      0.00015062149237837335, -2.43989944557621e-05,  -1.1221292615314274e-05, 5.709314113532492e-06,
      2.9198219084548256e-07, -8.25078338681245e-07,  7.74606863568198e-08,   1.1025271999000152e-07,
      -2.05545313698593e-08,  -1.4806988146925795e-08, 3.1672611119361695e-09, 1.825695118953907e-09,
      -2.655726616312575e-10, -1.4311318470928162e-10};
  const double y = x > 1e8 ? 1e8 : x;
  return polynomial(c, (y - 4.0) / (y + 4.0)) / (1.0 + 2.0 * y);
}

// erf(x) / x for 0 <= x <= 1 as a polynomial in x^2.
LLR_HD double erf_over_x(double x2) {
  constexpr double c[] = {1.1283791670955126,     -0.37612638903183754,   0.1128379167095512,
                          -0.02686617064512984,   0.0052239776254232985,  -0.000854832702193483,
                          0.00012055332902888736, -1.4925647567519332e-05, 1.6462045441468418e-06,
                          -1.6364642158167616e-07, 1.4792401209404813e-08, -1.216456005728345e-09,
                          8.709045129053106e-11,  -4.230945824295338e-12};
  return polynomial(c, x2);
}

}  // namespace detail

struct Pair {
  double value;  // sigma(z)
  double slope;  // sigma'(z)
};

// sin and cos of r + quarter pi/2, where |r| is at most an eighth of a turn. Only the last two bits of
// `quarter` matter.
LLR_HD Pair quarter_turns(int64_t quarter, double r) {
  using namespace detail;
  constexpr double s[] = {-1.0 / 6,         1.0 / 120,           -1.0 / 5040,
                          1.0 / 362880,     -1.0 / 39916800,     1.0 / 6227020800.0,
                          -1.0 / 1307674368000.0, 1.0 / 355687428096000.0};
  constexpr double c[] = {-1.0 / 2,          1.0 / 24,           -1.0 / 720,
                          1.0 / 40320,       -1.0 / 3628800,     1.0 / 479001600,
                          -1.0 / 87178291200.0, 1.0 / 20922789888000.0};
  const double r2 = r * r;
  const double sine = r + r * r2 * polynomial(s, r2);
  const double cosine = 1.0 + r2 * polynomial(c, r2);
  const bool odd = (quarter & 1) != 0;
  const int64_t sine_sign = (quarter & 2) << 62;
  const int64_t cosine_sign = ((quarter + 1) & 2) << 62;
  return {from_bits(bits(odd ? cosine : sine) ^ sine_sign),
          from_bits(bits(odd ? sine : cosine) ^ cosine_sign)};
}

template <Activation A>
LLR_HD Pair activate(double z) {
  using namespace detail;
  if constexpr (A == Activation::identity) {
    return {z, 1.0};
  } else if constexpr (A == Activation::relu) {
    return {z > 0.0 ? z : (z != z ? z : 0.0), z > 0.0 ? 1.0 : (z != z ? z : 0.0)};
  } else if constexpr (A == Activation::tanh) {
    const Exp e = exp_nonpositive(-2.0 * magnitude(z));
    const double inverse = 1.0 / (1.0 + e.value);  // divisions are the slowest operations here
    return {with_sign_of(-e.minus_one * inverse, z), 4.0 * e.value * (inverse * inverse)};
  } else if constexpr (A == Activation::sigmoid || A == Activation::softplus ||
                       A == Activation::silu) {
    const double e = exp_nonpositive(-magnitude(z)).value;
    const double inverse = 1.0 / (1.0 + e);
    const double sigmoid = z < 0.0 ? e * inverse : inverse;
    const double sigmoid_slope = e * inverse * inverse;
    if constexpr (A == Activation::sigmoid) return {sigmoid, sigmoid_slope};
    if constexpr (A == Activation::silu) return {z * sigmoid, sigmoid + z * sigmoid_slope};
    // As torch defines it: the identity beyond 20, where the smooth function differs from it by 2e-9.
    return {z > 20.0 ? z : (z > 0.0 ? z : 0.0) + log1p_unit(e), z > 20.0 ? 1.0 : sigmoid};
  } else if constexpr (A == Activation::gelu) {
    const double density = exp_nonpositive(-0.5 * (z * z)).value;  // e^(-z^2/2)
    const double tail = 0.5 * density * erfcx(magnitude(z) * inv_sqrt_2);
    const double cdf = z < 0.0 ? tail : 1.0 - tail;
    return {z * cdf, cdf + z * density * inv_sqrt_2pi};
  } else if constexpr (A == Activation::erf) {
    const double x = magnitude(z);
    const double gauss = exp_nonpositive(-(z * z)).value;
    const double near = x * erf_over_x(x < 1.0 ? z * z : 0.0);
    const double far = 1.0 - gauss * erfcx(x);
    return {with_sign_of(x < 1.0 ? near : far, z), 2.0 * inv_sqrt_pi * gauss};
  } else {
    static_assert(A == Activation::sin);
    // k quarter turns and the rest of the angle. pi/2 is in three parts of 33 bits, so that k * part is exact
    // while |z| < 2^19. The caller handles larger angles (large_angle.h).
    const double shifted = z * 0.63661977236758134308 + round_magic;
    const double k = shifted - round_magic;
    const double r = ((z - k * 1.57079632673412561417e+00) - k * 6.07710050630396597660e-11) -
                     k * 2.02226624879595063154e-21;
    return quarter_turns(bits(shifted), r);
  }
}

// Whether sin's argument is beyond the exact reduction above.
LLR_HD bool sin_is_large(double z) { return detail::magnitude(z) > 524288.0; }

}  // namespace llr
