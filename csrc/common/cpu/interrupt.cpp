#include "interrupt.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pybind11/pybind11.h>

#include <string_view>
#include <utility>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <pthread.h>
#endif

namespace llr {
namespace {

constexpr int64_t work_between_looks = 1 << 17;

struct ThreadState {
  Call* call = nullptr;
  int64_t work = 0;
};

thread_local constinit ThreadState state;

// Decided without the GIL: waiting for it is slow if other threads run Python.
bool on_main_thread() {
#if defined(__linux__)
  return getpid() == static_cast<pid_t>(syscall(SYS_gettid));
#elif defined(__APPLE__)
  return pthread_main_np() != 0;
#else
  return false;
#endif
}

}  // namespace

Call* Call::current() { return state.call; }
Call* Call::set_current(Call* call) { return std::exchange(state.call, call); }

void interruption_point(int64_t work) {
  ThreadState& here = state;
  if (work < work_between_looks && (here.work += work) < work_between_looks) return;
  here.work = 0;
  if (here.call != nullptr) here.call->look();
}

void Call::look() {
  if (stopped_.load(std::memory_order_relaxed)) throw Stopped{};
  if (std::this_thread::get_id() != caller_) return;
  const Clock::time_point now = Clock::now();
  if (due_ == Clock::time_point{}) due_ = now + interval;
  if (now < due_) return;
  ask_python();
  due_ = Clock::now() + interval;
  if (stopped_.load(std::memory_order_relaxed)) throw Stopped{};
}

void Call::ask_python() {
  if (!on_main_thread() || Py_IsInitialized() == 0) return;
  // A handler is arbitrary Python and may call torch. It must see the dispatch state from before the
  // operator.
  const c10::impl::ForceDispatchKeyGuard outside(
      c10::impl::LocalDispatchKeySet(c10::impl::PODLocalDispatchKeySet{}));
  const OnThread no_call(nullptr);
  const pybind11::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() == 0) return;
  error_ = std::make_exception_ptr(pybind11::error_already_set());
  stopped_.store(true, std::memory_order_relaxed);
}

void Call::raise() { std::rethrow_exception(std::move(error_)); }

void throw_out_of_memory(const char* op, const c10::Error* error) {
  if (error != nullptr && std::string_view(error->msg()).find("DefaultCPUAllocator") == std::string_view::npos) throw;
  TORCH_CHECK(false, op, ": not enough memory for the result or for the intermediate arrays; free memory, or call it "
              "with fewer samples or starts at a time");
}

}  // namespace llr
