#include "simd.h"

#include <cstdlib>
#include <cstring>
#include <string>

namespace llr {
namespace {

Simd supported() {
#if LLR_X86_DISPATCH
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    return Simd::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Simd::avx2;
#endif
  return Simd::baseline;
}

Simd choose() {
  const Simd best = supported();
  const char* asked = std::getenv("LLR_SIMD");
  if (asked == nullptr) return best;
  for (Simd level : {Simd::baseline, Simd::avx2, Simd::avx512}) {
    if (std::strcmp(asked, simd_level_name(level)) == 0 && level <= best) return level;
  }
  return best;
}

}  // namespace

Simd simd_level() {
  static const Simd level = choose();
  return level;
}

const char* simd_level_name(Simd level) {
  switch (level) {
    case Simd::avx512:
      return "avx512";
    case Simd::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

std::string simd_levels_compiled() { return LLR_X86_DISPATCH ? "baseline avx2 avx512" : "baseline"; }

}  // namespace llr
