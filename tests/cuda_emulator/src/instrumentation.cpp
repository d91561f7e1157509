// Sees the plain loads and stores of the kernels.
//
// The kernels are compiled with -fsanitize=thread,alignment,bounds, which puts a call before every access to memory and
// after every failed check, but they are not linked with these sanitizers: the calls end here. Accesses are checked for
// races, and those to shared memory for bounds.
#include "worker.h"

namespace msvit::emulator {

namespace {

void see(const void* address, size_t bytes, AccessKind kind, const void* instruction) {
  Worker& self = worker();
  if (!self.is_running() || self.is_private(address)) return;
  SharedMemory& shared = self.shared();
  Counts& counts = self.counts();
  if (!shared.is_near(address)) {
    (kind == AccessKind::read ? counts.plain_global_bytes_read : counts.plain_global_bytes_written) += bytes;
    return self.global_access(kind, address, bytes, Places::id(instruction), "plain access");
  }
  counts.plain_shared_bytes += bytes;
  const int64_t offset = static_cast<const unsigned char*>(address) - shared.data();
  self.access(kind, offset, bytes, Places::id(instruction), "plain access", self.thread());
}

void refuse(const char* what, const void* instruction) {
  Worker& self = worker();
  if (self.is_running())
    self.fail("thread " + std::to_string(self.thread().id) + " at " + locate(instruction).line + ": " + what);
}

}  // namespace

}  // namespace msvit::emulator

#define MSVIT_HIDDEN __attribute__((visibility("hidden")))
#define MSVIT_INSTRUCTION static_cast<const char*>(__builtin_return_address(0)) - 1

#define MSVIT_HOOKS(bytes)                                                                       \
  MSVIT_HIDDEN void __tsan_read##bytes(void* address) {                                          \
    msvit::emulator::see(address, bytes, msvit::emulator::AccessKind::read, MSVIT_INSTRUCTION);  \
  }                                                                                              \
  MSVIT_HIDDEN void __tsan_write##bytes(void* address) {                                         \
    msvit::emulator::see(address, bytes, msvit::emulator::AccessKind::write, MSVIT_INSTRUCTION); \
  }                                                                                              \
  MSVIT_HIDDEN void __tsan_unaligned_read##bytes(void* address) {                                \
    msvit::emulator::see(address, bytes, msvit::emulator::AccessKind::read, MSVIT_INSTRUCTION);  \
  }                                                                                              \
  MSVIT_HIDDEN void __tsan_unaligned_write##bytes(void* address) {                               \
    msvit::emulator::see(address, bytes, msvit::emulator::AccessKind::write, MSVIT_INSTRUCTION); \
  }

extern "C" {
MSVIT_HOOKS(1)
MSVIT_HOOKS(2)
MSVIT_HOOKS(4)
MSVIT_HOOKS(8)
MSVIT_HOOKS(16)
MSVIT_HIDDEN void __tsan_read_range(void* address, size_t bytes) {
  msvit::emulator::see(address, bytes, msvit::emulator::AccessKind::read, MSVIT_INSTRUCTION);
}
MSVIT_HIDDEN void __tsan_write_range(void* address, size_t bytes) {
  msvit::emulator::see(address, bytes, msvit::emulator::AccessKind::write, MSVIT_INSTRUCTION);
}
MSVIT_HIDDEN void __ubsan_handle_type_mismatch_v1(void*, uintptr_t) {
  msvit::emulator::refuse("an access that is not aligned", MSVIT_INSTRUCTION);
}
MSVIT_HIDDEN void __ubsan_handle_out_of_bounds(void*, uintptr_t) {
  msvit::emulator::refuse("an index outside of its array", MSVIT_INSTRUCTION);
}
// A function's static variables ask whether they are initialised. Only launchers have such.
MSVIT_HIDDEN uint8_t __tsan_atomic8_load(const volatile uint8_t* address, int) {
  return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}
MSVIT_HIDDEN void __tsan_init() {}
MSVIT_HIDDEN void __tsan_func_entry(void*) {}
MSVIT_HIDDEN void __tsan_func_exit(void*) {}
MSVIT_HIDDEN void __tsan_vptr_update(void**, void*) {}
MSVIT_HIDDEN void __tsan_vptr_read(void**) {}
}
