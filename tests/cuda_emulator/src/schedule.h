// The order of blocks, warps and lanes that the kernel leaves open.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace msvit::emulator {

class Schedule {
 public:
  // "forward", "reverse" or "random:SEED"; throws std::runtime_error for anything else.
  static Schedule parse(const std::string& text);

  Schedule for_block(int block) const;

  int block(int position, int num_blocks) const;
  // One of the warps in the set, which is not empty.
  int warp(uint32_t ready);
  void order_lanes(std::array<uint8_t, 32>& order);

 private:
  enum class Kind { forward, reverse, random };

  uint32_t draw(uint32_t bound);

  Kind kind_ = Kind::forward;
  uint64_t state_ = 0;
};

}  // namespace msvit::emulator
