// Vectors as wide as the ISA level of the including file allows, written with GCC/Clang vector extensions.
//
// Everything here is compiled once per level, in the namespace of the level.
#pragma once

#include <cmath>
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

template <class To, class From>
MSVIT_INLINE To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To result;
  std::memcpy(&result, &x, sizeof result);
  return result;
}

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

// NaN if the first argument is NaN.
MSVIT_INLINE VecF maximum(VecF a, VecF b) { return a < b ? b : a; }
MSVIT_INLINE VecF minimum(VecF a, VecF b) { return b < a ? b : a; }

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

// 2^(x + e) for an integer e and x + e <= 127, where shift = kExp2Shift + e. 0 if the result is below 2^-125, NaN if x
// is NaN. With kExact the error is at most 1.2 ulp. Without it, the relative error is at most 3e-6, enough for results
// that are rounded to bf16.
//
// x = n + f with an integer n and |f| <= 1/2. A minimax polynomial that is 1 at 0 gives 2^f, and n + e is added to its
// exponent field. Adding 1.5 * 2^23 rounds x to an integer and leaves n in the low bits, so nothing is converted. An e
// that is added there takes no precision from f.
constexpr float kExp2Shift = 12582912.0f;

template <bool kExact>
MSVIT_INLINE VecF exp2_shifted(VecF x, VecF shift) {
  const VecF shifted = x + shift;
  const VecF f = x - (shifted - shift);
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
  return shifted < kExp2Shift - 125.0f ? VecF{} : reinterpret_cast<VecF>(scaled);
}

template <bool kExact>
MSVIT_INLINE VecF exp2_below_128(VecF x) {
  return exp2_shifted<kExact>(x, splat(kExp2Shift));
}

// 2^exponent, for an exponent in -126 .. 127.
MSVIT_INLINE float power_of_2(int32_t exponent) { return bit_cast<float>((exponent + 127) << 23); }

// log2(e) * factor + term as the sum of two floats, with a relative error of about 2^-47. It makes exp(factor x) a
// power of 2. Both have one sign, because an infinite x times factors of two signs would be NaN: `high` is rounded
// towards zero, and `low` is never 0.
struct Log2Factor {
  float high, low;
  explicit Log2Factor(double factor, double term = 0.0) {
    const double product = factor * kLog2e + term;
    high = static_cast<float>(product);
    // One less in the bits is the next float on the side of 0.
    if (high != 0.0f && std::abs(high) >= std::abs(product)) high = bit_cast<float>(bit_cast<int32_t>(high) - 1);
    low = static_cast<float>(product - high);
  }
  static constexpr double kLog2e = 1.4426950408889634;
};

}  // namespace MSVIT_ISA
}  // namespace msvit
