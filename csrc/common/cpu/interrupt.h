// Handles Ctrl-C and other signals while an operator runs.
//
// Python runs signal handlers between its own instructions, and an operator executes none of these. So long
// loops call interruption_point() between pieces of work, on every thread. From time to time the thread that
// called the operator asks Python to run the handlers of pending signals. If a handler raises an exception
// (KeyboardInterrupt), every thread leaves its loop, and the operator ends with that exception and without a
// result. An operator called outside Python's main thread does not ask, because Python runs handlers only on
// the main thread.
//
// Only llr.cpp, interrupt.h and interrupt.cpp depend on Python.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <thread>
#include <utility>

#include <c10/util/Exception.h>

namespace llr {

// Thrown by interruption_point() to leave the loops; Call::raise() replaces it by Python's exception.
struct Stopped {};

// A call of an operator. It lives on the stack of the calling thread, and is the current call of that thread
// and of the threads that work for this call.
class Call {
 public:
  Call() : previous_(set_current(this)) {}
  ~Call() { set_current(previous_); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // The call that this thread works for, or null.
  static Call* current();
  static Call* set_current(Call* call);  // returns the one before

  // Makes `call` the current call of this thread as long as the object lives.
  class OnThread {
   public:
    explicit OnThread(Call* call) : previous_(set_current(call)) {}
    ~OnThread() { set_current(previous_); }
    OnThread(const OnThread&) = delete;
    OnThread& operator=(const OnThread&) = delete;

   private:
    Call* const previous_;
  };

  // Throws Stopped if the call has been interrupted.
  void look();
  [[noreturn]] void raise();

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds interval{150};

  void ask_python();

  const std::thread::id caller_ = std::this_thread::get_id();
  Call* const previous_;
  Clock::time_point due_{};  // none before the first look
  std::atomic<bool> stopped_{false};
  std::exception_ptr error_;
};

// To be called between pieces of work; `work` is the number of multiply-adds since the previous call. Checks
// for signals about every hundred microseconds. Throws Stopped.
void interruption_point(int64_t work);

// at::parallel_for; the current call of the caller is also the current call of its threads.
template <typename F>
void parallel_for(int64_t count, int64_t grain, const F& f) {
  Call* const call = Call::current();
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const Call::OnThread on_thread(call);
    f(begin, end);
  });
}

// To be called inside a catch block: for std::bad_alloc (error is null), or for an error of torch, which is
// rethrown unless it reports missing memory.
[[noreturn]] void throw_out_of_memory(const char* op, const c10::Error* error);

template <size_t N>
struct OperatorName {
  char text[N];
  constexpr OperatorName(const char (&name)[N]) {  // NOLINT: a literal is a name
    for (size_t i = 0; i < N; ++i) text[i] = name[i];
  }
};

// The function that the dispatcher calls: runs `function` so that it can be interrupted. If memory runs out,
// the error names the operator.
template <OperatorName name, auto function>
struct Interruptible;

template <OperatorName name, typename R, typename... Arguments, R (*function)(Arguments...)>
struct Interruptible<name, function> {
  static R call(Arguments... arguments) {
    Call call;
    try {
      return function(std::forward<Arguments>(arguments)...);
    } catch (const Stopped&) {
      call.raise();
    } catch (const std::bad_alloc&) {
      throw_out_of_memory(name.text, nullptr);
    } catch (const c10::Error& error) {
      throw_out_of_memory(name.text, &error);
    }
  }
};

}  // namespace llr
