// Vectors of the widest width that the ISA level of this file has, written with GCC/Clang vector extensions.
//
// Everything here is compiled once per ISA level, inside the level's namespace.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#if defined(__clang__)
#define MSVIT_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MSVIT_UNROLL _Pragma("GCC unroll 16")
#endif
#define MSVIT_INLINE inline __attribute__((always_inline))

namespace msvit {
namespace MSVIT_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float VecF __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecI __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecU __attribute__((vector_size(4 * kLanes)));
typedef uint16_t VecH __attribute__((vector_size(2 * kLanes)));

// The same types as they lie in memory: any element alignment, any declared type.
typedef float VecFMem __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t VecUMem __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t VecHMem __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

MSVIT_INLINE VecF splat(float x) { return x - VecF{}; }
MSVIT_INLINE VecI splat_int(int32_t x) { return x - VecI{}; }
MSVIT_INLINE VecF load(const void* p) { return *static_cast<const VecFMem*>(p); }
MSVIT_INLINE VecU load_bits(const void* p) { return *static_cast<const VecUMem*>(p); }
MSVIT_INLINE void store(void* p, VecF x) { *static_cast<VecFMem*>(p) = x; }
MSVIT_INLINE void store_bits(void* p, VecU x) { *static_cast<VecUMem*>(p) = x; }

// First n lanes true, n in 0 .. kLanes.
MSVIT_INLINE VecI first_lanes(int64_t n) {
  VecI lane;
  MSVIT_UNROLL
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < splat_int(static_cast<int32_t>(n));
}

MSVIT_INLINE VecF select(VecI mask, VecF yes, VecF no) { return mask ? yes : no; }

// NaN in x is kept, so that a NaN score reaches the output.
MSVIT_INLINE VecF at_least(VecF x, float lower) {
  const VecF bound = splat(lower);
  return x < bound ? bound : x;
}

MSVIT_INLINE VecF maximum(VecF a, VecF b) { return a < b ? b : a; }

// Lanes are combined pairwise in a fixed order.
MSVIT_INLINE float reduce_max(VecF x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] < lanes[i + width] ? lanes[i + width] : lanes[i];
  return lanes[0];
}

MSVIT_INLINE float reduce_add(VecF x) {
  float lanes[kLanes];
  store(lanes, x);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// 2^x for x < 128: at most 1 ulp of error for x >= -126, exactly 1 at 0, exactly 0 for x <= -127, NaN for NaN.
// x = n + f with n an integer and |f| <= 1/2; the polynomial is 2^f, and n is added to its exponent field. Adding
// 1.5 * 2^23 rounds to an integer and leaves n in the low bits, so no conversion is needed.
MSVIT_INLINE VecF exp2_below_128(VecF x) {
  constexpr float kRound = 12582912.0f;
  x = at_least(x, -127.0f);
  const VecF shifted = x + kRound;
  const VecF f = x - (shifted - kRound);
  VecF p = splat(1.5403530e-4f);
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return reinterpret_cast<VecF>(reinterpret_cast<VecU>(p) + (reinterpret_cast<VecU>(shifted) << 23));
}

// The same, and infinity from 128 on.
MSVIT_INLINE VecF exp2_saturating(VecF x) {
  const VecF infinite = splat(__builtin_inff());
  return select(x >= 128.0f, infinite, exp2_below_128(x));
}

}  // namespace MSVIT_ISA
}  // namespace msvit
