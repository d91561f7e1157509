// Lines of code as numbers, so that a word of shared memory can remember its last use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emulator.h"

namespace msvit::emulator {

class Places {
 public:
  uint32_t id(Place place);
  // For an instruction of this module: accesses that only the compiler's instrumentation sees have no Place.
  static uint32_t id(const void* instruction);
  std::string name(uint32_t id) const;

 private:
  std::vector<Place> slots_ = std::vector<Place>(4096, Place{nullptr, 0});
};

// "file.cu:12", without folders.
std::string name_of(Place place);

// Function name and line of an instruction of this module, from its debug information; without that, its offset.
struct CodeLocation {
  std::string function, line;
};
CodeLocation locate(const void* instruction);

}  // namespace msvit::emulator
