// Transposes blocks of kBlock x kBlock words in registers, by shuffles of pairs of vectors.
#pragma once

#include "elements.h"

namespace msvit {
namespace MSVIT_ISA {

#if defined(__AVX__)
constexpr int kBlock = 8;
#else
constexpr int kBlock = 4;
#endif
typedef float Block __attribute__((vector_size(4 * kBlock)));
typedef int32_t BlockI __attribute__((vector_size(4 * kBlock)));
typedef uint32_t BlockU __attribute__((vector_size(4 * kBlock)));
typedef uint16_t BlockH __attribute__((vector_size(2 * kBlock)));
typedef float BlockMem __attribute__((vector_size(4 * kBlock), aligned(2), may_alias));
typedef uint16_t BlockHMem __attribute__((vector_size(2 * kBlock), aligned(2), may_alias));

MSVIT_INLINE Block load_block(const float* p) { return *reinterpret_cast<const BlockMem*>(p); }
MSVIT_INLINE Block load_block(const Bf16* p) {
  const BlockH half = *reinterpret_cast<const BlockHMem*>(p);
  return reinterpret_cast<Block>(__builtin_convertvector(half, BlockU) << 16);
}
MSVIT_INLINE void store_block(float* p, Block x) { *reinterpret_cast<BlockMem*>(p) = x; }
MSVIT_INLINE void store_block(uint32_t* p, Block x) { *reinterpret_cast<BlockMem*>(p) = x; }
MSVIT_INLINE void store_block(Bf16* p, Block x) {  // x holds widened bf16: cutting the low half off is exact
  *reinterpret_cast<BlockHMem*>(p) = __builtin_convertvector(reinterpret_cast<BlockU>(x) >> 16, BlockH);
}

#if defined(__clang__)
#define MSVIT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MSVIT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, BlockI{__VA_ARGS__})
#endif

MSVIT_INLINE void transpose_pairs(Block& a, Block& b, Block& c, Block& d) {
#if defined(__AVX__)
  const Block ab_low = MSVIT_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13),
              ab_high = MSVIT_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  const Block cd_low = MSVIT_SHUFFLE(c, d, 0, 8, 1, 9, 4, 12, 5, 13),
              cd_high = MSVIT_SHUFFLE(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
  a = MSVIT_SHUFFLE(ab_low, cd_low, 0, 1, 8, 9, 4, 5, 12, 13);
  b = MSVIT_SHUFFLE(ab_low, cd_low, 2, 3, 10, 11, 6, 7, 14, 15);
  c = MSVIT_SHUFFLE(ab_high, cd_high, 0, 1, 8, 9, 4, 5, 12, 13);
  d = MSVIT_SHUFFLE(ab_high, cd_high, 2, 3, 10, 11, 6, 7, 14, 15);
#else
  const Block ab_low = MSVIT_SHUFFLE(a, b, 0, 4, 1, 5), ab_high = MSVIT_SHUFFLE(a, b, 2, 6, 3, 7);
  const Block cd_low = MSVIT_SHUFFLE(c, d, 0, 4, 1, 5), cd_high = MSVIT_SHUFFLE(c, d, 2, 6, 3, 7);
  a = MSVIT_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5);
  b = MSVIT_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7);
  c = MSVIT_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
  d = MSVIT_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
#endif
}

MSVIT_INLINE void transpose(Block (&x)[kBlock]) {
#if defined(__AVX__)
  transpose_pairs(x[0], x[1], x[2], x[3]);
  transpose_pairs(x[4], x[5], x[6], x[7]);
  MSVIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    const Block low = x[i], high = x[i + 4];
    x[i] = MSVIT_SHUFFLE(low, high, 0, 1, 2, 3, 8, 9, 10, 11);
    x[i + 4] = MSVIT_SHUFFLE(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
  }
#else
  transpose_pairs(x[0], x[1], x[2], x[3]);
#endif
}
#undef MSVIT_SHUFFLE

// dst[j * stride + i] = word j of load(i), for i and j < kBlock.
template <class Load, class T>
MSVIT_INLINE void transpose_block(const Load& load, T* dst, int64_t stride) {
  Block x[kBlock];
  MSVIT_UNROLL
  for (int i = 0; i < kBlock; ++i) x[i] = load(i);
  transpose(x);
  MSVIT_UNROLL
  for (int i = 0; i < kBlock; ++i) store_block(dst + i * stride, x[i]);
}

}  // namespace MSVIT_ISA
}  // namespace msvit
