// The operations per second that this CPU reaches in registers: the benches measure their roofline with it.
#pragma once

#include <cstdint>

#include "isa.h"

namespace msvit {

struct FmaPeak {
  double flop;     // of all threads; a multiply-add counts as two
  double seconds;  // of the slowest thread
};

// Each thread runs a loop `iterations` times: fp32 multiply-adds or, if `bf16`, products of bfloat16 pairs added to
// fp32. If the level has no such instruction, flop is 0.
#define MSVIT_ENTRY(level)                                          \
  namespace level {                                                 \
  FmaPeak fma_peak(int64_t iterations, int num_threads, bool bf16); \
  }
MSVIT_FOR_EACH_ISA(MSVIT_ENTRY)
#undef MSVIT_ENTRY

}  // namespace msvit
