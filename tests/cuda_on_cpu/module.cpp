// Registers the operators' schemas as torch.ops.llr_emulated, and functions for the emulation's settings.
#include "schemas.h"

#include "emulated_device.h"

namespace {

void emulate(int64_t order, int64_t seed, int64_t shared_limit, int64_t multiprocessors) {
  TORCH_CHECK(0 <= order && order <= 2, "order: 0 is forward, 1 reverse, 2 random; got ", order);
  llr::emulation::emulate({static_cast<llr::emulation::Order>(order), static_cast<uint64_t>(seed),
                           static_cast<int>(shared_limit), static_cast<int>(multiprocessors)});
}

std::vector<int64_t> statistics() {
  const llr::emulation::Statistics s = llr::emulation::statistics();
  return {s.vector_stores, s.scalar_stores, s.launches};
}

void remove_barriers(std::string file, int64_t line) {
  llr::emulation::remove_barriers(file.c_str(), static_cast<int>(line));
}

void limit_memory(int64_t bytes) { llr::cuda::most_bytes() = bytes; }

}  // namespace

TORCH_LIBRARY(llr_emulated, m) {
  llr::define_operators(m);
  m.def("emulate(int order, int seed, int shared_limit, int multiprocessors) -> ()", &emulate);
  m.def("limit_memory(int bytes) -> ()", &limit_memory);
  m.def("reset_statistics() -> ()", &llr::emulation::reset_statistics);
  m.def("statistics() -> int[]", &statistics);
  m.def("remove_barriers(str file, int line) -> ()", &remove_barriers);
  m.def("removed_barriers() -> int", &llr::emulation::removed_barriers);
}
