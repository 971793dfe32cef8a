// Which vector instructions to run: decided once per process from what the processor supports, so that one
// portable build runs on every machine. LLR_SIMD=baseline|avx2|avx512 asks for a lower level (the tests run
// every level).
#pragma once

#include <string>

namespace llr {

enum class Simd { baseline = 0, avx2 = 1, avx512 = 2 };

Simd simd_level();                 // the level in use
const char* simd_level_name(Simd);
std::string simd_levels_compiled();  // "baseline avx2 avx512" on x86 with gcc or clang

}  // namespace llr

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LLR_X86_DISPATCH 1
#else
#define LLR_X86_DISPATCH 0
#endif
