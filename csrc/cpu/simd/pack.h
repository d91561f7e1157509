// Copies of tensor rows into the operand layouts of gemm.h: converted, transposed, padded with zeros.
//
// Only the head_dim elements of a row are ever read, however the tile that they land in is padded.
#pragma once

#include "gemm.h"

namespace msvit {
namespace MSVIT_ISA {

struct Bf16 {
  uint16_t bits;
};

MSVIT_INLINE float to_float(float x) { return x; }
MSVIT_INLINE float to_float(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
MSVIT_INLINE VecF load_floats(const float* p) { return load(p); }
MSVIT_INLINE VecF load_floats(const Bf16* p) {
  const VecH half = *reinterpret_cast<const VecHMem*>(p);
  return reinterpret_cast<VecF>(__builtin_convertvector(half, VecU) << 16);
}

// Nearest even; NaN stays NaN.
MSVIT_INLINE VecU to_bf16_bits(VecF x) {
  const VecU bits = reinterpret_cast<VecU>(x);
  const VecU rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return x == x ? rounded : (bits >> 16) | 0x40;
}
MSVIT_INLINE void store_floats(float* p, VecF x) { store(p, x); }
MSVIT_INLINE void store_floats(Bf16* p, VecF x) {
  *reinterpret_cast<VecHMem*>(p) = __builtin_convertvector(to_bf16_bits(x), VecH);
}
MSVIT_INLINE void store_float(float* p, float x) { *p = x; }
MSVIT_INLINE void store_float(Bf16* p, float x) { p->bits = static_cast<uint16_t>(to_bf16_bits(splat(x))[0]); }

// dst[i] = scale * src[i], i < n.
template <class T>
void write_scaled(T* dst, const float* src, float scale, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_floats(dst + i, load(src + i) * scale);
  for (; i < n; ++i) store_float(dst + i, src[i] * scale);
}

// Rows of one (sequence, head); index picks rows (null: all, in order).
template <class T>
struct Rows {
  const T* base;
  int64_t stride;
  const int32_t* index;
  const T* operator[](int64_t i) const { return base + (index ? index[i] : i) * stride; }
  Rows from(int64_t i) const {
    return index ? Rows{base, stride, index + i} : Rows{base + i * stride, stride, nullptr};
  }
};

MSVIT_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// dst[i] = src[i] for i < n, 0 for n <= i < padded.
template <class T>
MSVIT_INLINE void copy_floats(float* dst, const T* src, int64_t n, int64_t padded) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(dst + i, load_floats(src + i));
  for (; i < n; ++i) dst[i] = to_float(src[i]);
  for (; i < padded; ++i) dst[i] = 0.0f;
}

// ---- A operands: row-major words, kRowStride apart, reduction along the row; floats are padded to whole vectors
// ---------

template <class Op, class T>
struct PackA;

template <class T>
struct PackA<F32, T> {
  static void rows(float* dst, Rows<T> src, int64_t rows, int64_t dim) {
    for (int64_t i = 0; i < rows; ++i) copy_floats(dst + i * kRowStride, src[i], dim, round_up(dim, kLanes));
  }
};

// Changes the sign of A operands.
template <class Op>
void negate(typename Op::Word* a, int64_t rows, int64_t dim) {
  const uint32_t signs = Op::kPerWord == 1 ? 0x80000000u : 0x80008000u;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t w = 0; w < dim / Op::kPerWord; w += kLanes)
      store_bits(a + i * kRowStride + w, load_bits(a + i * kRowStride + w) ^ signs);
}

// ---- B operands with reduction down the rows: [ceil(rows / kPerWord)][padded_dim] words
// --------------------------------

template <class Op, class T>
struct PackB;

template <class T>
struct PackB<F32, T> {
  static void rows(float* dst, Rows<T> src, int64_t rows, int64_t dim, int64_t padded_dim) {
    for (int64_t i = 0; i < rows; ++i) copy_floats(dst + i * padded_dim, src[i], dim, padded_dim);
  }
};

#ifdef __AVX512BF16__
template <>
struct PackA<Bf16Pairs, Bf16> {
  static void rows(uint32_t* dst, Rows<Bf16> src, int64_t rows, int64_t dim) {
    for (int64_t i = 0; i < rows; ++i) std::memcpy(dst + i * kRowStride, src[i], dim * sizeof(Bf16));
  }
};

MSVIT_INLINE VecU load_halves(const Bf16* p) {
  return __builtin_convertvector(*reinterpret_cast<const VecHMem*>(p), VecU);
}

template <>
struct PackB<Bf16Pairs, Bf16> {
  static void rows(uint32_t* dst, Rows<Bf16> src, int64_t rows, int64_t dim, int64_t padded_dim) {
    static constexpr Bf16 kZeros[128] = {};
    for (int64_t i = 0; i < rows; i += 2, dst += padded_dim) {
      const Bf16 *low = src[i], *high = i + 1 < rows ? src[i + 1] : kZeros;
      int64_t d = 0;
      for (; d + kLanes <= dim; d += kLanes) store_bits(dst + d, load_halves(low + d) | load_halves(high + d) << 16);
      for (; d < dim; ++d) dst[d] = low[d].bits | static_cast<uint32_t>(high[d].bits) << 16;
      for (; d < padded_dim; ++d) dst[d] = 0;
    }
  }
};
#endif

// ---- B operands with reduction along the rows: transposed panels (gemm_panels)
// -----------------------------------------

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

// kBlock words of a row, starting at word w.
template <class Op>
MSVIT_INLINE Block load_words(const float* row, int64_t w) {
  return *reinterpret_cast<const BlockMem*>(row + w);
}
template <class Op>
MSVIT_INLINE Block load_words(const Bf16* row, int64_t w) {
  if (Op::kPerWord == 2) return *reinterpret_cast<const BlockMem*>(row + 2 * w);
  const BlockH half = *reinterpret_cast<const BlockHMem*>(row + w);
  return reinterpret_cast<Block>(__builtin_convertvector(half, BlockU) << 16);
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

// kBlock rows, all words of them: dst[w * width + i] = word w of row i.
template <class Op, class T>
void pack_columns(typename Op::Word* dst, const T* const (&row)[kBlock], int64_t dim, int64_t width) {
  const int64_t words = dim / Op::kPerWord;
  int64_t w = 0;
  for (; w + kBlock <= words; w += kBlock) {
    Block x[kBlock];
    MSVIT_UNROLL
    for (int i = 0; i < kBlock; ++i) x[i] = load_words<Op>(row[i], w);
    transpose(x);
    MSVIT_UNROLL
    for (int i = 0; i < kBlock; ++i) *reinterpret_cast<BlockMem*>(dst + (w + i) * width) = x[i];
  }
  if constexpr (Op::kPerWord == 2) {  // head_dim = 8 mod 16: half a block is left
    for (; w < words; ++w)
      for (int i = 0; i < kBlock; ++i) std::memcpy(dst + w * width + i, row[i] + w * 2, sizeof(*dst));
  }
}

// All rows; lanes after the last row are zero up to a whole vector.
template <class Op, class T>
void pack_panels(typename Op::Word* dst, Rows<T> src, int64_t rows, int64_t dim) {
  static constexpr T kZeros[128] = {};
  const int64_t padded = round_up(rows, kLanes), depth = dim / Op::kPerWord;
  for (int64_t begin = 0; begin < padded; begin += kTileCols) {
    const int64_t width = padded - begin < kTileCols ? padded - begin : kTileCols;
    for (int64_t lane = 0; lane < width; lane += kBlock) {
      const T* row[kBlock];
      for (int i = 0; i < kBlock; ++i) row[i] = begin + lane + i < rows ? src[begin + lane + i] : kZeros;
      pack_columns<Op, T>(dst + begin * depth + lane, row, dim, width);
    }
  }
}

}  // namespace MSVIT_ISA
}  // namespace msvit
