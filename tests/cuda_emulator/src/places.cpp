#include "places.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace msvit::emulator {

namespace {

constexpr uint32_t kInstruction = 0x80000000u;
constexpr const char* kHeaders[] = {"emulator.h:", "cuda_runtime.h:", "device_code.cuh:"};

const Dl_info& this_module() {
  static const Dl_info info = [] {
    Dl_info result{};
    dladdr(reinterpret_cast<const void*>(&name_of), &result);
    return result;
  }();
  return info;
}

std::string demangled(const std::string& name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  const std::string result = status == 0 ? text : name;
  std::free(text);
  return result;
}

bool is_in_emulator(const std::string& line) {
  return std::any_of(std::begin(kHeaders), std::end(kHeaders),
                     [&](const std::string& header) { return line.rfind(header, 0) == 0; });
}

std::string without_folders(const std::string& path) {
  const std::string file = path.substr(path.find_last_of('/') + 1);
  return file.substr(0, file.find(' '));  // of "file:12 (discriminator 3)"
}

}  // namespace

uint32_t Places::id(Place place) {
  uint32_t slot =
      static_cast<uint32_t>(place.line * 31 + (reinterpret_cast<uintptr_t>(place.file) >> 4)) % slots_.size();
  while (slots_[slot].file != nullptr && (slots_[slot].file != place.file || slots_[slot].line != place.line))
    slot = (slot + 1) % slots_.size();
  slots_[slot] = place;
  return slot;
}

uint32_t Places::id(const void* instruction) {
  const auto base = reinterpret_cast<uintptr_t>(this_module().dli_fbase);
  return kInstruction | static_cast<uint32_t>(reinterpret_cast<uintptr_t>(instruction) - base);
}

std::string Places::name(uint32_t id) const {
  if (!(id & kInstruction)) return name_of(slots_[id]);
  return locate(static_cast<const unsigned char*>(this_module().dli_fbase) + (id & ~kInstruction)).line;
}

std::string name_of(Place place) { return without_folders(place.file) + ":" + std::to_string(place.line); }

CodeLocation locate(const void* instruction) {
  const auto offset =
      static_cast<const unsigned char*>(instruction) - static_cast<const unsigned char*>(this_module().dli_fbase);
  char text[4096];
  std::snprintf(text, sizeof text, "addr2line -i -f -e '%s' 0x%tx 2>/dev/null", this_module().dli_fname, offset);
  CodeLocation result;
  FILE* pipe = popen(text, "r");
  // addr2line prints two lines, function and place, for each inlined call, the innermost first. The first that is not
  // in the emulator's headers is the kernel's.
  const auto next = [&](std::string& line) {
    if (pipe == nullptr || std::fgets(text, sizeof text, pipe) == nullptr) return false;
    line.assign(text, std::strcspn(text, "\n"));
    return true;
  };
  std::string function, line;
  while (next(function) && next(line)) {
    if (line.empty() || line[0] == '?') break;
    result = {demangled(function), without_folders(line)};
    if (!is_in_emulator(result.line)) break;
  }
  if (pipe != nullptr) pclose(pipe);
  if (!result.line.empty()) return result;
  std::snprintf(text, sizeof text, "code+0x%tx", offset);
  return {text, text};
}

}  // namespace msvit::emulator
