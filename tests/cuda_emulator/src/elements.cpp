// 16-bit floats, rounded to nearest even; NaN becomes the one NaN that the hardware's conversions give.
#include "emulator.h"

namespace msvit::emulator {

namespace {

constexpr uint32_t kNan = 0x7fff;

uint32_t to_bf16(float x) {
  const auto bits = bit_cast<uint32_t>(x);
  return x != x ? kNan : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

uint32_t to_fp16(float x) {
  const auto bits = bit_cast<uint32_t>(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (x != x) return kNan;
  if (magnitude >= 0x47800000u) return sign | 0x7c00;  // 2^16 and more
  // Adding 0.5 leaves a subnormal half, rounded, in the low bits of the sum.
  if (magnitude < 0x38800000u) return sign | (bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u);
  return sign | (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
}

}  // namespace

uint32_t pack_bf16(float low, float high) { return to_bf16(low) | to_bf16(high) << 16; }
uint32_t pack_fp16(float low, float high) { return to_fp16(low) | to_fp16(high) << 16; }

float fp16_to_float(uint16_t bits) {
  const float magnitude = bit_cast<float>(static_cast<uint32_t>(bits & 0x7fff) << 13) * 0x1p112f;
  const uint32_t infinite_or_nan = (bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0;
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | infinite_or_nan | static_cast<uint32_t>(bits & 0x8000) << 16);
}

}  // namespace msvit::emulator
