// The part of CUDA that the kernels of csrc use, on the host: the real kernels and launchers run on a machine
// without a GPU, and under the sanitizers. kernel.cuh includes this file if LLR_EMULATE is defined.
//
// Every CUDA thread is a fiber, which runs until it waits. Blocks run one after the other. These errors are
// always detected, with a report and abort():
//   - a barrier not reached by the whole block, or at different lines; other deadlocks, with where threads wait;
//   - a lane missing from a mask, lanes of a mask at different lines, a shuffle from a lane outside the mask;
//   - a grid that is empty or above 2^31 - 1, a block that is not 32, 64, ..., 1024 threads, a wrong stream;
//   - dynamic shared memory above 48 KB without the attribute, or above what the device has;
//   - parts of the shared memory beyond what was launched with, or not the same in all threads;
//   - store_vector to an address that is not a multiple of 16 bytes.
// Shared memory starts as NaN. Threads and blocks run in one of several orders (Settings, below).
//
// Under AddressSanitizer the parts of the shared memory have red zones around them. For ThreadSanitizer every
// CUDA thread is a thread. Its memory accesses are ordered with those of others only by __syncthreads*,
// __syncwarp, and the beginning and end of a launch: shuffles and atomics hide no race, nor does the order in
// which the fibers run. Neighbouring blocks run on different fibers, so that their races are detected; blocks
// further apart are neighbours in another order.
//
// The emulation cannot show: time, registers or occupancy; what the device's compiler does to the code (it
// contracts a*b + c, g++ does not here) and the device's own functions (tanh, exp); memory seen in another
// order by threads that race on purpose, with fences and flags, which our kernels do not do.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define LLR_DEVICE inline
#define LLR_KERNEL(threads, blocks) void
#define LLR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::llr::emulation::launch(#kernel, (kernel), (grid), (block), (shared_bytes), (stream), __VA_ARGS__)

// ---- the runtime's functions

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
};
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrReservedSharedMemoryPerBlock = 111,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = struct CUstream_st*;

cudaError_t cudaGetLastError();  // and forgets it
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
template <typename... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

namespace llr::emulation {

// ---- for tests

enum class Order { forward, reverse, random };

struct Settings {
  Order order = Order::forward;
  uint64_t seed = 0;                // of the random order
  int shared_limit = 163 * 1024;    // the most shared memory that a block may have: sm_80's
  int multiprocessors = 108;
};
void emulate(const Settings& settings);
const Settings& settings();

struct Statistics {
  int64_t vector_stores, scalar_stores, launches;
};
Statistics statistics();  // since the last reset
void reset_statistics();

// Removes the barriers at this line of a file (given by the end of its name), for tests that must detect
// that; line 0 restores them. Counts how often a removed barrier is passed.
void remove_barriers(const char* file, int line);
int64_t removed_barriers();

cudaStream_t stream();  // the only one that launches may go to

// ---- implementation of the names that kernels use

struct Site {  // of a barrier or a warp operation
  const char* what;
  const char* file;
  int line;
};

// Reports the error and its thread, and ends the process.
[[noreturn]] __attribute__((format(printf, 2, 3))) void violation(const Site* site, const char* format, ...);

// Never inlined: they read variables that change without any order that the sanitizer knows. But the value is
// constant for a thread, so `const` saves calls.
struct Index {
  unsigned x;
};
__attribute__((const)) Index thread_index();
__attribute__((const)) Index block_index();
__attribute__((const)) Index block_size();
__attribute__((const)) Index grid_size();

struct Votes {
  int yes, no;
};

Votes block_barrier(Site site, bool vote);
void warp_barrier(Site site, unsigned mask);
uint64_t warp_shuffle(Site site, unsigned mask, unsigned source, uint64_t value);
void* shared_part(int index, int64_t count, int64_t size);
void count_vector_store(const void* p);
void count_scalar_store();

struct Launch {
  const char* kernel;
  const void* address;
  int64_t grid, block, shared_bytes;
  cudaStream_t stream;
  void (*thread)(const Launch&);  // runs the kernel as the current thread
  const void* arguments;
};
void run(const Launch& launch);
void check_launch(const Launch& launch);

template <typename... P, typename... A>
void launch(const char* name, void (*kernel)(P...), int64_t grid, int64_t block, int64_t shared_bytes,
            cudaStream_t stream, const A&... arguments) {
  static_assert((std::is_trivially_copyable_v<P> && ...), "arguments of kernels are copied byte by byte");
  const std::tuple<P...> copies(arguments...);
  static_assert(sizeof copies <= 4096, "the device takes 4 KB of arguments");
  const auto thread = [](const Launch& l) {
    std::apply(reinterpret_cast<void (*)(P...)>(const_cast<void*>(l.address)),
               *static_cast<const std::tuple<P...>*>(l.arguments));
  };
  run({name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, stream, thread, &copies});
}

template <typename T>
T shuffle(Site site, unsigned mask, T value, unsigned source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = warp_shuffle(site, mask, source, bits);
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace llr::emulation

// ---- what kernels use

#define threadIdx (::llr::emulation::thread_index())
#define blockIdx (::llr::emulation::block_index())
#define blockDim (::llr::emulation::block_size())
#define gridDim (::llr::emulation::grid_size())

// Default arguments that are evaluated where the function is called.
#define LLR_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(LLR_CALLER) { llr::emulation::block_barrier({__func__, file, line}, false); }
inline int __syncthreads_count(int vote, LLR_CALLER) {
  return llr::emulation::block_barrier({__func__, file, line}, vote != 0).yes;
}
inline int __syncthreads_or(int vote, LLR_CALLER) {
  return llr::emulation::block_barrier({__func__, file, line}, vote != 0).yes != 0;
}
inline int __syncthreads_and(int vote, LLR_CALLER) {
  return llr::emulation::block_barrier({__func__, file, line}, vote != 0).no == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, LLR_CALLER) {
  llr::emulation::warp_barrier({__func__, file, line}, mask);
}

// `width` lanes form a group; a lane that would read beyond its group gets its own value.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, LLR_CALLER) {
  const unsigned lane = threadIdx.x % 32, group = lane / width * width;
  return llr::emulation::shuffle({__func__, file, line}, mask, value, group + source % unsigned(width));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, LLR_CALLER) {
  const unsigned lane = threadIdx.x % 32, source = lane ^ flip, end = lane / width * width + width;
  return llr::emulation::shuffle({__func__, file, line}, mask, value, source < end ? source : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, LLR_CALLER) {
  const unsigned lane = threadIdx.x % 32, source = lane + delta, end = lane / width * width + width;
  return llr::emulation::shuffle({__func__, file, line}, mask, value, source < end ? source : lane);
}

template <typename T>
T atomicAdd(T* p, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>, "a sum of floats in any order is not the same in every bit");
  return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}
template <typename T>
T atomicOr(T* p, std::common_type_t<T> value) {
  static_assert(std::is_integral_v<T>);
  return __atomic_fetch_or(p, value, __ATOMIC_RELAXED);
}

inline double rsqrt(double x) { return 1 / sqrt(x); }

namespace llr::cuda {

class Shared {
 public:
  template <typename T>
  T* part(int count) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 16);
    return static_cast<T*>(emulation::shared_part(parts_++, count, sizeof(T)));
  }

 private:
  int parts_ = 0;
};

inline void store_vector(double* p, const double (&v)[2]) {
  emulation::count_vector_store(p);
  memcpy(p, v, sizeof v);
}
inline void store_vector(float* p, const float (&v)[4]) {
  emulation::count_vector_store(p);
  memcpy(p, v, sizeof v);
}

template <typename T>
void store_scalar(T* p, T v) {
  emulation::count_scalar_store();
  *p = v;
}

}  // namespace llr::cuda
