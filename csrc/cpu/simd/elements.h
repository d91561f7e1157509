// Elements of every dtype that kernels read or write: one element, a vector, a row.
//
// The functions for one element have no branches, so that loops over them become vector code.
#pragma once

#include "vec.h"

namespace msvit {
namespace MSVIT_ISA {

struct Bf16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

// ---- one element

MSVIT_INLINE float to_float(float x) { return x; }
MSVIT_INLINE float to_float(Bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
// Exact: subnormal halves become normal floats.
MSVIT_INLINE float to_float(Half x) {
  const float magnitude = bit_cast<float>(static_cast<uint32_t>(x.bits & 0x7fff) << 13) * 0x1p112f;
  const uint32_t infinite_or_nan = (x.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | infinite_or_nan |
                         static_cast<uint32_t>(x.bits & 0x8000) << 16);
}
MSVIT_INLINE float to_float(uint8_t x) { return x; }

// Rounds to nearest even; NaN stays NaN.
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

// ---- a vector

MSVIT_INLINE VecF load_floats(const float* p) { return load(p); }
MSVIT_INLINE VecF load_floats(const Bf16* p) {
  const VecH half = *reinterpret_cast<const VecHMem*>(p);
  return reinterpret_cast<VecF>(__builtin_convertvector(half, VecU) << 16);
}

// Rounds to nearest even; NaN stays NaN.
MSVIT_INLINE VecU to_bf16_bits(VecF x) {
  const VecU bits = reinterpret_cast<VecU>(x);
  const VecU rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return x == x ? rounded : (bits >> 16) | 0x40;
}
MSVIT_INLINE void store_floats(float* p, VecF x) { store(p, x); }
MSVIT_INLINE void store_floats(Bf16* p, VecF x) {
  *reinterpret_cast<VecHMem*>(p) = __builtin_convertvector(to_bf16_bits(x), VecH);
}

// Elements as the lower halves of words.
MSVIT_INLINE VecU load_halves(const Bf16* p) {
  return __builtin_convertvector(*reinterpret_cast<const VecHMem*>(p), VecU);
}

// ---- a row

// dst[i] = scale * src[i], i < n.
template <class T>
void write_scaled(T* dst, const float* src, float scale, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_floats(dst + i, load(src + i) * scale);
  for (; i < n; ++i) convert(dst + i, src[i] * scale);
}

// dst[i] = src[i] for i < n, 0 for n <= i < padded.
template <class T>
MSVIT_INLINE void copy_floats(float* dst, const T* src, int64_t n, int64_t padded) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(dst + i, load_floats(src + i));
  for (; i < n; ++i) dst[i] = to_float(src[i]);
  for (; i < padded; ++i) dst[i] = 0.0f;
}

}  // namespace MSVIT_ISA
}  // namespace msvit
