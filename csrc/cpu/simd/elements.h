// Elements of every dtype that kernels read or write besides attention's, one at a time and free of branches, so that
// loops over them become vector code.
#pragma once

#include "pack.h"

namespace msvit {
namespace MSVIT_ISA {

struct Half {
  uint16_t bits;
};

template <class To, class From>
MSVIT_INLINE To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To result;
  std::memcpy(&result, &x, sizeof result);
  return result;
}

// Exact; subnormal halves become normal floats.
MSVIT_INLINE float to_float(Half x) {
  const float magnitude = bit_cast<float>(static_cast<uint32_t>(x.bits & 0x7fff) << 13) * 0x1p112f;
  const uint32_t infinite_or_nan = (x.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | infinite_or_nan |
                         static_cast<uint32_t>(x.bits & 0x8000) << 16);
}
MSVIT_INLINE float to_float(uint8_t x) { return x; }

// Nearest even; NaN stays NaN.
MSVIT_INLINE void convert(float* dst, float x) { *dst = x; }
MSVIT_INLINE void convert(Bf16* dst, float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  dst->bits = static_cast<uint16_t>(x == x ? rounded : (bits >> 16) | 0x40);
}
MSVIT_INLINE void convert(Half* dst, float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffff;
  // Adding 0.5 leaves a subnormal half, rounded, in the low bits of the sum.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  dst->bits = static_cast<uint16_t>(half | (bits >> 16 & 0x8000));
}

}  // namespace MSVIT_ISA
}  // namespace msvit
