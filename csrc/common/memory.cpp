#include "memory.h"

#include <cstdio>

#include <unistd.h>

namespace llr {
namespace {

// Physical memory, free or not. If the system does not report it: 2^47 bytes, the address space of a process.
double memory_bytes() {
  static const double bytes = [] {
    const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? static_cast<double>(pages) * static_cast<double>(size) : 0x1p47;
  }();
  return bytes;
}

std::string text(double bytes) {
  const char* const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  int unit = 0;
  for (bytes /= 1024.0; bytes >= 1024.0 && unit < 5; ++unit) bytes /= 1024.0;
  char written[64];
  (void)std::snprintf(written, sizeof written, bytes < 1e4 ? "%.1f %s" : "%.1e %s", bytes, units[unit]);
  return written;
}

}  // namespace

bool fits_memory(double bytes) { return bytes <= memory_bytes(); }

std::string beyond_memory(double bytes) {
  return "takes " + text(bytes) + ", more than the memory of this machine (" + text(memory_bytes()) + ")";
}

}  // namespace llr
