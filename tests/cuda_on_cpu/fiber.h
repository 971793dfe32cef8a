// Fibers: stacks that one OS thread switches between. The sanitizers are told of each switch. Only for
// emulation.cpp.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#define LLR_UCONTEXT
#endif
#if defined(LLR_UCONTEXT)
#include <ucontext.h>
#endif

// For functions that access the scheduler's data. The scheduler orders these accesses, but nothing on the
// emulated device does, so the sanitizers must not see them. Such functions use no templates of the standard
// library, which would be instrumented.
#define LLR_UNSEEN __attribute__((no_sanitize("address", "thread"), noinline))

#if !defined(LLR_UCONTEXT)
// Saves the registers that a function must preserve on the current stack, and restores them from the other.
extern "C" __attribute__((visibility("hidden"))) void llr_switch_stack(void** save, void* take);
asm(R"(
  .text
  .hidden llr_switch_stack
  .globl llr_switch_stack
  .type llr_switch_stack, @function
llr_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size llr_switch_stack, .-llr_switch_stack
)");
#endif

namespace llr::emulation {

constexpr size_t page = 4096;
constexpr size_t stack_bytes = 64 * page;  // sanitizers write their reports on it

class Fiber {
 public:
  // The fiber of the OS thread, which has a stack already.
  void adopt() {
#if defined(__SANITIZE_THREAD__)
    identity_ = __tsan_get_current_fiber();
#endif
  }

  // A fiber that will run `body`, which never returns, on a new stack.
  void make(void (*body)(), int index) {
    const size_t bytes = stack_bytes + page;
    void* const memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      perror("emulated CUDA: a stack");
      abort();
    }
    mprotect(memory, page, PROT_NONE);  // a stack overflow causes a fault
    stack_ = static_cast<char*>(memory) + page;
    // Stacks that all begin at the same offset in a page would compete for few cache lines.
    size_ = stack_bytes - index % 64 * 64;
#if defined(LLR_UCONTEXT)
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = size_;
    makecontext(&context_, body, 0);
#else
    void** top = reinterpret_cast<void**>(stack_ + size_) - 1;
    *top = nullptr;  // where body() would return to: 8 bytes from a multiple of 16, as after any call
    *--top = reinterpret_cast<void*>(body);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    top_ = top;
#endif
#if defined(__SANITIZE_THREAD__)
    identity_ = __tsan_create_fiber(0);
#endif
  }

  // Switches from this fiber, which is running, to another. Returns when another fiber switches back.
  LLR_UNSEEN void go_to(Fiber& to) {
    before_ = this;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, to.stack_, to.size_);
#endif
#if defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(to.identity_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(LLR_UCONTEXT)
    swapcontext(&context_, &to.context_);
#else
    llr_switch_stack(&top_, to.top_);
#endif
    arrived();
  }

  // To be called first in a body.
  LLR_UNSEEN void arrived() {
#if defined(__SANITIZE_ADDRESS__)
    const void* stack;  // of the fiber that ran before; this is how the host's stack becomes known
    __sanitizer_finish_switch_fiber(fake_stack_, &stack, &before_->size_);
    before_->stack_ = static_cast<char*>(const_cast<void*>(stack));
#endif
  }

 private:
  char* stack_ = nullptr;  // its lowest usable address
  size_t size_ = 0;
#if defined(LLR_UCONTEXT)
  ucontext_t context_;
#else
  void* top_ = nullptr;  // the stack pointer while another fiber runs
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_ = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
  void* identity_ = nullptr;
#endif
  static inline Fiber* before_ = nullptr;  // the one that ran before
};

}  // namespace llr::emulation
