// Instruction-set levels of the CPU kernels, and the choice between them at run time.
//
// simd/levels.cmake lists the levels and generates isa_levels.h from that list. CMake compiles every performance file
// once per level, with -DMSVIT_ISA=<level> and the level's -m flags. Such a file puts everything that it defines,
// helper headers included, into namespace msvit::MSVIT_ISA, so that the linker can never replace a function by its twin
// that was compiled for a newer CPU. Its header declares the entry points of all levels:
//
//     #define MSVIT_ENTRY(level) namespace level { void relu(const ReluArgs& args); }
//     MSVIT_FOR_EACH_ISA(MSVIT_ENTRY)
//     #undef MSVIT_ENTRY
//
// and the binding calls the chosen one: MSVIT_CALL_CHOSEN_ISA(relu, args).
#pragma once

#include <string>
#include <vector>

#include "isa_levels.h"

// Statements that call `function` of the chosen level and return its result.
#define MSVIT_CALL_CHOSEN_ISA(function, ...)                       \
  switch (::msvit::chosen_isa()) {                                 \
    MSVIT_FOR_EACH_ISA_WITH(MSVIT_ISA_CASE, function, __VA_ARGS__) \
    default: return ::msvit::portable::function(__VA_ARGS__);      \
  }
#define MSVIT_ISA_CASE(level, function, ...) \
  case ::msvit::Isa::level: return ::msvit::level::function(__VA_ARGS__);

namespace msvit {

// Levels in this binary, ascending: a CPU that runs one level runs all before it.
#define MSVIT_LISTED(level) level,
enum class Isa { MSVIT_FOR_EACH_ISA(MSVIT_LISTED) };
#undef MSVIT_LISTED

std::string isa_name(Isa isa);

std::vector<Isa> compiled_isas();
// The compiled levels that this CPU can run.
std::vector<Isa> supported_isas();

// The highest supported level, or the one that MSVIT_CPU_ISA names. The first call that succeeds reads the variable.
// Throws std::invalid_argument if the named level is unknown or if this CPU cannot run it.
Isa chosen_isa();

}  // namespace msvit
