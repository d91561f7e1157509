// Vectors as wide as the ISA level of the including file allows, written with GCC/Clang vector extensions.
//
// Everything here is compiled once per level, in the namespace of the level.
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

MSVIT_INLINE int64_t ceil_div(int64_t n, int64_t divisor) { return (n + divisor - 1) / divisor; }
MSVIT_INLINE int64_t round_up(int64_t n, int64_t multiple) { return ceil_div(n, multiple) * multiple; }

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

// The same types in memory: aligned to an element, and of any declared type.
typedef float VecFMem __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t VecUMem __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t VecHMem __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

MSVIT_INLINE VecF splat(float x) { return x - VecF{}; }
MSVIT_INLINE VecI splat_int(int32_t x) { return x - VecI{}; }
MSVIT_INLINE VecF load(const void* p) { return *static_cast<const VecFMem*>(p); }
MSVIT_INLINE VecU load_bits(const void* p) { return *static_cast<const VecUMem*>(p); }
MSVIT_INLINE void store(void* p, VecF x) { *static_cast<VecFMem*>(p) = x; }
MSVIT_INLINE void store_bits(void* p, VecU x) { *static_cast<VecUMem*>(p) = x; }

// True in the first n lanes, n in 0 .. kLanes.
MSVIT_INLINE VecI first_lanes(int64_t n) {
  VecI lane;
  MSVIT_UNROLL
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < splat_int(static_cast<int32_t>(n));
}

MSVIT_INLINE VecF select(VecI mask, VecF yes, VecF no) { return mask ? yes : no; }

MSVIT_INLINE VecF maximum(VecF a, VecF b) { return a < b ? b : a; }

// Lane i of the result is lane i ^ kDistance of x.
template <int kDistance>
MSVIT_INLINE VecF swap_lanes(VecF x) {
#if defined(__clang__)
  VecF y;
  for (int i = 0; i < kLanes; ++i) y[i] = x[i ^ kDistance];
  return y;
#else
  VecI from;
  MSVIT_UNROLL
  for (int i = 0; i < kLanes; ++i) from[i] = i ^ kDistance;
  return __builtin_shuffle(x, from);
#endif
}

// Reductions combine lanes pairwise in a fixed order.
MSVIT_INLINE float reduce_max(VecF x) {
  if constexpr (kLanes == 16) x = maximum(x, swap_lanes<8>(x));
  if constexpr (kLanes >= 8) x = maximum(x, swap_lanes<4>(x));
  x = maximum(x, swap_lanes<2>(x));
  return maximum(x, swap_lanes<1>(x))[0];
}

MSVIT_INLINE float reduce_add(VecF x) {
  if constexpr (kLanes == 16) x += swap_lanes<8>(x);
  if constexpr (kLanes >= 8) x += swap_lanes<4>(x);
  x += swap_lanes<2>(x);
  return (x + swap_lanes<1>(x))[0];
}

// 2^x for x < 128; 0 if x < -126 (the result would be subnormal), NaN if x is NaN. With kExact the error is at most
// 1.2 ulp. Without it, the relative error is at most 3e-6, enough for results that are rounded to bf16.
//
// x = n + f with an integer n and |f| <= 1/2. A minimax polynomial that is 1 at 0 gives 2^f, and n is added to its
// exponent field. Adding 1.5 * 2^23 rounds x to an integer and leaves n in the low bits, so nothing is converted.
template <bool kExact>
MSVIT_INLINE VecF exp2_below_128(VecF x) {
  constexpr float kRound = 12582912.0f;
  const VecF shifted = x + kRound;
  const VecF f = x - (shifted - kRound);
  VecF p;
  if (kExact) {
    p = 1.53533620e-4f * f + 1.33988750e-3f;
    p = p * f + 9.61843692e-3f;
    p = p * f + 5.55033237e-2f;
    p = p * f + 2.40226477e-1f;
    p = p * f + 6.93147182e-1f;
  } else {
    p = 9.58285294e-3f * f + 5.59064262e-2f;
    p = p * f + 2.40240991e-1f;
    p = p * f + 6.93124175e-1f;
  }
  p = p * f + 1.0f;
  const VecU scaled = reinterpret_cast<VecU>(p) + (reinterpret_cast<VecU>(shifted) << 23);
  return x < -126.0f ? VecF{} : reinterpret_cast<VecF>(scaled);
}

// The same for all x: infinity if x >= 128.
template <bool kExact>
MSVIT_INLINE VecF exp2_saturating(VecF x) {
  return x >= 128.0f ? splat(__builtin_inff()) : exp2_below_128<kExact>(x);
}

// log2(e) * factor as the sum of two floats, with a relative error of about 2^-48. It makes exp(factor x) a power of 2.
struct Log2Factor {
  float high, low;
  explicit Log2Factor(double factor)
      : high(static_cast<float>(factor * kLog2e)), low(static_cast<float>(factor * kLog2e - high)) {}
  static constexpr double kLog2e = 1.4426950408889634;
};

}  // namespace MSVIT_ISA
}  // namespace msvit
