// How many operations a second this CPU does in registers: the roofline of the benches, measured and not looked up.
#pragma once

#include <cstdint>

#include "isa.h"

namespace msvit {

struct FmaPeak {
  double flop;     // of all threads; a multiply-add counts as two
  double seconds;  // of the slowest thread
};

// Runs `iterations` of a loop on each thread: fp32 multiply-adds or, if bf16, products of bfloat16 pairs added to fp32.
// If the level has no such instruction, flop is 0.
#define MSVIT_ENTRY(level)                                          \
  namespace level {                                                 \
  FmaPeak fma_peak(int64_t iterations, int num_threads, bool bf16); \
  }
MSVIT_FOR_EACH_ISA(MSVIT_ENTRY)
#undef MSVIT_ENTRY

}  // namespace msvit
