// Instruction-set levels of the CPU kernels and the choice between them at run time.
//
// CMake compiles every performance file once per level, with -DMSVIT_ISA=<level> and the level's -m flags. Such a file
// puts everything it defines (also what it includes from helper headers) into namespace msvit::MSVIT_ISA, so that no
// function compiled for a newer CPU can stand in for its older twin at link time. Its header declares the entry points
// per level:
//
//     #define MSVIT_ENTRY(level) namespace level { void relu(const ReluArgs& args); }
//     MSVIT_FOR_EACH_ISA(MSVIT_ENTRY)
//     #undef MSVIT_ENTRY
//     inline void relu(const ReluArgs& args) { MSVIT_CALL_CHOSEN_ISA(relu, args); }
#pragma once

#include <string>
#include <vector>

#include "isa_levels.h"  // MSVIT_FOR_EACH_ISA

#define MSVIT_ISA_CASE(level, function, ...) \
  case ::msvit::Isa::level: return ::msvit::level::function(__VA_ARGS__);
#define MSVIT_CALL_CHOSEN_ISA(function, ...)                       \
  switch (::msvit::chosen_isa()) {                                 \
    MSVIT_FOR_EACH_ISA_WITH(MSVIT_ISA_CASE, function, __VA_ARGS__) \
    default: return ::msvit::portable::function(__VA_ARGS__);      \
  }

namespace msvit {

// Ascending: a CPU that runs one level runs all before it.
enum class Isa { portable, avx2, avx512, avx512bf16 };

std::string isa_name(Isa isa);

// Levels in this binary, and those of them that this CPU can run.
std::vector<Isa> compiled_isas();
std::vector<Isa> supported_isas();

// The highest supported level, or the one that MSVIT_CPU_ISA names. Read once, at the first call that succeeds.
// Throws std::invalid_argument if MSVIT_CPU_ISA names a level that is unknown or that this CPU cannot run.
Isa chosen_isa();

}  // namespace msvit
