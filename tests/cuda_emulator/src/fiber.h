// Fibers: functions with stacks of their own that give way to one another. Switching costs a few nanoseconds on x86-64.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || !defined(__ELF__) || defined(MSVIT_PORTABLE_FIBERS)
#include <ucontext.h>
#define MSVIT_UCONTEXT
#endif

namespace msvit::emulator {

struct Context {
#ifdef MSVIT_UCONTEXT
  ucontext_t registers;
#else
  void* stack_pointer;
#endif
};

// Makes `context` one that starts at `entry`, which must not return, with the stack [low, low + bytes).
void prepare(Context& context, unsigned char* low, size_t bytes, void (*entry)());

// Saves the caller in `from` and continues `to`.
void switch_context(Context& from, Context& to);

}  // namespace msvit::emulator
