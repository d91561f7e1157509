// Asks the CPU which of the compiled levels it runs, and reads MSVIT_CPU_ISA.
#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace msvit {

namespace {

Isa choose() {
  const std::vector<Isa> supported = supported_isas();
  const char* wanted = std::getenv("MSVIT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return supported.back();
  std::string names;
  for (const Isa isa : supported) {
    if (isa_name(isa) == wanted) return isa;
    names += (names.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("MSVIT_CPU_ISA: expected one of " + names + " (the levels of this CPU and build), got '" +
                              wanted + "'");
}

}  // namespace

std::string isa_name(Isa isa) {
  switch (isa) {
#define MSVIT_NAME(level) \
  case Isa::level: return #level;
    MSVIT_FOR_EACH_ISA(MSVIT_NAME)
#undef MSVIT_NAME
  }
  return "unknown";
}

std::vector<Isa> compiled_isas() {
#define MSVIT_LISTED(level) Isa::level,
  return {MSVIT_FOR_EACH_ISA(MSVIT_LISTED)};
#undef MSVIT_LISTED
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> supported;
#define MSVIT_ADD_IF(level, condition) \
  if (condition) supported.push_back(Isa::level);
  MSVIT_FOR_EACH_ISA_CONDITION(MSVIT_ADD_IF)
#undef MSVIT_ADD_IF
  return supported;
}

Isa chosen_isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace msvit
