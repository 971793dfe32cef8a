// The functions of the CUDA runtime that launchers use.
#include <map>

#include "emulation.h"

using namespace llr::emulation;

namespace {

constexpr int shared_without_asking = 48 * 1024;

cudaError_t last_error = cudaSuccess;

std::map<const void*, int>& asked() {
  static std::map<const void*, int> per_kernel;
  return per_kernel;
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

namespace llr::emulation {

void check_launch(const Launch& l) {
  const auto refuse = [&l](const char* what, int64_t got, int64_t limit) {
    violation(nullptr, "launch of %s: %s: %lld, limit %lld", l.kernel, what, (long long)got,
              (long long)limit);
  };
  if (l.stream != stream()) violation(nullptr, "launch of %s: not to the current stream", l.kernel);
  if (l.grid < 1 || l.grid > INT32_MAX) refuse("blocks", l.grid, INT32_MAX);
  if (l.block < 32 || l.block > 1024 || l.block % 32 != 0) {
    refuse("threads of a block, in whole warps", l.block, 1024);
  }
  const auto found = asked().find(l.address);
  const int64_t limit = found == asked().end() ? shared_without_asking : found->second;
  if (l.shared_bytes < 0 || l.shared_bytes > limit) {
    refuse("shared memory above what cudaFuncSetAttribute allows it", l.shared_bytes, limit);
  }
  if (l.shared_bytes > settings().shared_limit) {
    refuse("shared memory above what the device has", l.shared_bytes, settings().shared_limit);
  }
}

}  // namespace llr::emulation

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return remember(cudaErrorInvalidDevice);
  const std::map<cudaDeviceAttr, int> values = {
      {cudaDevAttrMaxSharedMemoryPerBlock, shared_without_asking},
      {cudaDevAttrMultiProcessorCount, settings().multiprocessors},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, settings().shared_limit + 1024},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, settings().shared_limit},
      {cudaDevAttrReservedSharedMemoryPerBlock, 1024},
  };
  const auto found = values.find(attribute);
  if (found == values.end()) return remember(cudaErrorInvalidValue);
  *value = found->second;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      value > settings().shared_limit) {
    return remember(cudaErrorInvalidValue);
  }
  asked()[kernel] = value;
  return cudaSuccess;
}
