// Copies tensor rows into the operand layouts of gemm.h: converts, transposes, and pads with zeros.
//
// No more than the head_dim elements of a row are read, whatever the padding of the operand.
#pragma once

#include "gemm.h"
#include "transpose.h"

namespace msvit {
namespace MSVIT_ISA {

constexpr int64_t kMaxHeadDim = 128;

// Rows of one (sequence, head): those that index names, or all in order if it is null.
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

// ---- A operands: row-major words, reduction along the row; rows of floats are padded to whole vectors

// Words from one row of a packed A operand to the next: no multiple of a large power of two, so that rows spread over
// the cache sets.
constexpr int64_t kRowStride = 272;

template <class Op, class T>
struct PackA;

template <class T>
struct PackA<F32, T> {
  static void rows(float* dst, Rows<T> src, int64_t rows, int64_t dim) {
    for (int64_t i = 0; i < rows; ++i) copy_floats(dst + i * kRowStride, src[i], dim, round_up(dim, kLanes));
  }
};

#ifdef __AVX512BF16__
template <>
struct PackA<Bf16Pairs, Bf16> {
  static void rows(uint32_t* dst, Rows<Bf16> src, int64_t rows, int64_t dim) {
    for (int64_t i = 0; i < rows; ++i) std::memcpy(dst + i * kRowStride, src[i], dim * sizeof(Bf16));
  }
};
#endif

// Changes the sign of A operands.
template <class Op>
void negate(typename Op::Word* a, int64_t rows, int64_t dim) {
  const uint32_t signs = Op::kPerWord == 1 ? 0x80000000u : 0x80008000u;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t w = 0; w < dim / Op::kPerWord; w += kLanes)
      store_bits(a + i * kRowStride + w, load_bits(a + i * kRowStride + w) ^ signs);
}

// ---- B operands with reduction down the rows: [ceil(rows / kPerWord)][padded_dim] words

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
struct PackB<Bf16Pairs, Bf16> {
  static void rows(uint32_t* dst, Rows<Bf16> src, int64_t rows, int64_t dim, int64_t padded_dim) {
    static constexpr Bf16 kZeros[kMaxHeadDim] = {};
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

// kBlock words of a row, starting at word w.
template <class Op, class T>
MSVIT_INLINE Block load_words(const T* row, int64_t w) {
  if constexpr (Op::kPerWord == 2) return *reinterpret_cast<const BlockMem*>(row + 2 * w);
  return load_block(row + w);
}

// dst[w * width + i] = word w of row i, for kBlock rows and all their words.
template <class Op, class T>
void pack_columns(typename Op::Word* dst, const T* const (&row)[kBlock], int64_t dim, int64_t width) {
  const int64_t words = dim / Op::kPerWord;
  int64_t w = 0;
  for (; w + kBlock <= words; w += kBlock)
    transpose_block([&](int i) { return load_words<Op>(row[i], w); }, dst + w * width, width);
  if constexpr (Op::kPerWord == 2) {  // if head_dim is 8 mod 16, half a block is left
    for (; w < words; ++w)
      for (int i = 0; i < kBlock; ++i) std::memcpy(dst + w * width + i, row[i] + w * 2, sizeof(*dst));
  }
}

// Packs all rows. Lanes after the last row are zero up to a whole vector.
template <class Op, class T>
void pack_panels(typename Op::Word* dst, Rows<T> src, int64_t rows, int64_t dim) {
  static constexpr T kZeros[kMaxHeadDim] = {};
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
