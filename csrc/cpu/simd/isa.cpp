#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace msvit {

namespace {

bool cpu_runs(Isa isa) {
#if defined(__x86_64__) && defined(MSVIT_COMPILER_KNOWS_AVX512BF16)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (isa) {
    case Isa::portable: return true;
    case Isa::avx2: return avx2;
    case Isa::avx512: return avx512;
    case Isa::avx512bf16: return avx512 && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return isa == Isa::portable;
#endif
}

Isa choose() {
  const std::vector<Isa> supported = supported_isas();
  const char* wanted = std::getenv("MSVIT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return supported.back();
  std::string names;
  for (const Isa isa : supported) {
    if (isa_name(isa) == wanted) return isa;
    names += (names.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("MSVIT_CPU_ISA: expected one of " + names + " (what this CPU and build can run), got '" +
                              wanted + "'");
}

}  // namespace

std::string isa_name(Isa isa) {
  switch (isa) {
    case Isa::portable: return "portable";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512bf16: return "avx512bf16";
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
  for (const Isa isa : compiled_isas())
    if (cpu_runs(isa)) supported.push_back(isa);
  return supported;
}

Isa chosen_isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace msvit
