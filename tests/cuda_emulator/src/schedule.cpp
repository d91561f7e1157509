#include "schedule.h"

#include <stdexcept>
#include <utility>

namespace msvit::emulator {

Schedule Schedule::parse(const std::string& text) {
  Schedule result;
  if (text == "forward") return result;
  if (text == "reverse") {
    result.kind_ = Kind::reverse;
    return result;
  }
  const std::string prefix = "random:";
  const std::string digits = text.rfind(prefix, 0) == 0 ? text.substr(prefix.size()) : "";
  if (digits.empty() || digits.size() > 9 || digits.find_first_not_of("0123456789") != std::string::npos)
    throw std::runtime_error("MSVIT_EMULATED_SCHEDULE: expected forward, reverse or random:SEED, got " + text);
  result.kind_ = Kind::random;
  result.state_ = std::stoull(digits);
  return result;
}

Schedule Schedule::for_block(int block) const {
  Schedule result = *this;
  result.state_ = (state_ + 1) * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(block) * 0xbf58476d1ce4e5b9u;
  return result;
}

int Schedule::block(int position, int num_blocks) const {
  if (kind_ == Kind::random) return static_cast<int>((position + state_) % num_blocks);
  return kind_ == Kind::forward ? position : num_blocks - 1 - position;
}

uint32_t Schedule::draw(uint32_t bound) {
  state_ += 0x9e3779b97f4a7c15u;  // splitmix64
  uint64_t bits = state_;
  bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>((bits >> 32) * bound >> 32);
}

int Schedule::warp(uint32_t ready) {
  if (kind_ == Kind::forward) return __builtin_ctz(ready);
  if (kind_ == Kind::reverse) return 31 - __builtin_clz(ready);
  for (uint32_t skip = draw(static_cast<uint32_t>(__builtin_popcount(ready))); skip > 0; --skip) ready &= ready - 1;
  return __builtin_ctz(ready);
}

void Schedule::order_lanes(std::array<uint8_t, 32>& order) {
  for (uint8_t i = 0; i < 32; ++i) order[i] = kind_ == Kind::reverse ? 31 - i : i;
  if (kind_ != Kind::random) return;
  for (uint32_t i = 31; i > 0; --i) std::swap(order[i], order[draw(i + 1)]);
}

}  // namespace msvit::emulator
