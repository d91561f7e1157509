#include "fiber.h"

#include <cstdint>

#ifdef MSVIT_UCONTEXT

namespace msvit::emulator {

void prepare(Context& context, unsigned char* low, size_t bytes, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = low;
  context.registers.uc_stack.ss_size = bytes;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }

}  // namespace msvit::emulator

#else

// By the System V ABI a call preserves rbx, rbp, r12 to r15 and the stack. Nobody changes the control words of the
// floating-point units. swapcontext would also save the signal mask, by a system call.
asm(R"(
  .text
  .hidden msvit_switch_stack
  .globl msvit_switch_stack
  .type msvit_switch_stack, @function
msvit_switch_stack:
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
  .size msvit_switch_stack, .-msvit_switch_stack
)");
extern "C" void msvit_switch_stack(void** save, void* load);

namespace msvit::emulator {

void prepare(Context& context, unsigned char* low, size_t bytes, void (*entry)()) {
  uintptr_t top = reinterpret_cast<uintptr_t>(low + bytes) / 16 * 16;
  // As after a call: the address that `entry` would return to, then its own, then six saved registers.
  auto* words = reinterpret_cast<uintptr_t*>(top) - 8;
  for (int i = 0; i < 6; ++i) words[i] = 0;
  words[6] = reinterpret_cast<uintptr_t>(entry);
  words[7] = 0;
  context.stack_pointer = words;
}

void switch_context(Context& from, Context& to) { msvit_switch_stack(&from.stack_pointer, to.stack_pointer); }

}  // namespace msvit::emulator

#endif
