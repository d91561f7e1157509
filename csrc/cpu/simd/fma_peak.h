// How many operations a second this CPU does in registers: the roofline of the benches, measured and not looked up.
#pragma once

#include <cstdint>

#include "isa.h"

namespace msvit {

struct FmaPeakArgs {
  int64_t iterations;  // of each thread
  int num_threads;
  bool bf16;  // products of bfloat16 pairs added to fp32, instead of fp32 multiply-adds
  double
      flop;  // out: operations of all threads, a multiply-add counted as two; 0 where the level has no such instruction
  double seconds;  // out: of the slowest thread
};

#define MSVIT_DECLARE_FMA_PEAK(level) \
  namespace level {                   \
  void fma_peak(FmaPeakArgs& args);   \
  }
MSVIT_FOR_EACH_ISA(MSVIT_DECLARE_FMA_PEAK)
#undef MSVIT_DECLARE_FMA_PEAK

inline void fma_peak(FmaPeakArgs& args) { MSVIT_CALL_CHOSEN_ISA(fma_peak, args); }

}  // namespace msvit
