// Register-tiled products of small row-major matrices, the inner loops of the attention kernels.
//
//   C[r][n] (+)= sum_k A(r, k) B[k][n],   C fp32
//
// Lanes run along n, so a step over k is one vector load of B and one broadcast of A per accumulator row. The sum over
// k is taken in order in one accumulator per element whatever the tile, so an element's bits do not depend on which
// rows or columns are computed with it. What C held is added last: chains stay as short as one call's depth. Operands
// are in words of 4 bytes: one float (F32) or two consecutive bf16 along k (Bf16Pairs, one vdpbf16ps per word).
#pragma once

#include "vec.h"

namespace msvit {
namespace MSVIT_ISA {

struct F32 {
  using Word = float;
  static constexpr int kPerWord = 1;
  static constexpr bool kExactExp = true;
  static MSVIT_INLINE VecF multiply_add(VecF acc, float a, VecF b) { return acc + splat(a) * b; }
};

#ifdef __AVX512BF16__
struct Bf16Pairs {
  using Word = uint32_t;
  static constexpr int kPerWord = 2;
  static constexpr bool kExactExp = false;
  static MSVIT_INLINE VecF multiply_add(VecF acc, uint32_t a, VecF b) {
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)b);
  }
};
#endif

// Accumulators, operands and one temporary fill 32 vector registers on AVX-512 and 16 elsewhere.
#if defined(__AVX512F__)
constexpr int kTileRows = 6, kTileVecs = 4;
#else
constexpr int kTileRows = 6, kTileVecs = 2;
#endif
constexpr int kTileCols = kTileVecs * kLanes;

// Words between two rows of every packed A operand: no multiple of a large power of two, so that rows spread over the
// cache sets.
constexpr int64_t kRowStride = 272;

// How A is stored: A(r, k) = a[r * lda + k], or a[r + k * lda].
struct RowMajor {
  static MSVIT_INLINE int64_t row(int64_t lda) { return lda; }
  static MSVIT_INLINE int64_t step(int64_t) { return 1; }
};
struct Transposed {
  static MSVIT_INLINE int64_t row(int64_t) { return 1; }
  static MSVIT_INLINE int64_t step(int64_t lda) { return lda; }
};

template <class Op, class Layout, int kRows, int kVecs>
void gemm_tile(const typename Op::Word* a, int64_t lda, const typename Op::Word* b, int64_t ldb, int64_t depth,
               float* c, int64_t ldc, bool accumulate) {
  VecF acc[kRows][kVecs] = {};
  for (int64_t k = 0; k < depth; ++k) {
    VecF row[kVecs];
    MSVIT_UNROLL
    for (int n = 0; n < kVecs; ++n) row[n] = load(b + n * kLanes);
    MSVIT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      MSVIT_UNROLL
      for (int n = 0; n < kVecs; ++n) acc[r][n] = Op::multiply_add(acc[r][n], a[r * Layout::row(lda)], row[n]);
    }
    a += Layout::step(lda);
    b += ldb;
  }
  if (accumulate) {
    MSVIT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      MSVIT_UNROLL
      for (int n = 0; n < kVecs; ++n) acc[r][n] += load(c + r * ldc + n * kLanes);
    }
  }
  MSVIT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    MSVIT_UNROLL
    for (int n = 0; n < kVecs; ++n) store(c + r * ldc + n * kLanes, acc[r][n]);
  }
}

template <class Op>
using TileFunction = void (*)(const typename Op::Word*, int64_t, const typename Op::Word*, int64_t, int64_t, float*,
                              int64_t, bool);

template <class Op, class Layout, int kVecs>
TileFunction<Op> tile_function_of(int64_t rows) {
  static constexpr TileFunction<Op> kTable[kTileRows] = {
      gemm_tile<Op, Layout, 1, kVecs>, gemm_tile<Op, Layout, 2, kVecs>, gemm_tile<Op, Layout, 3, kVecs>,
      gemm_tile<Op, Layout, 4, kVecs>, gemm_tile<Op, Layout, 5, kVecs>, gemm_tile<Op, Layout, 6, kVecs>};
  return kTable[rows - 1];
}

// rows in 1 .. kTileRows, vecs in 1 .. kTileVecs.
template <class Op, class Layout>
TileFunction<Op> tile_function(int64_t rows, int64_t vecs) {
#if defined(__AVX512F__)
  if (vecs == 4) return tile_function_of<Op, Layout, 4>(rows);
  if (vecs == 3) return tile_function_of<Op, Layout, 3>(rows);
#endif
  if (vecs == 2) return tile_function_of<Op, Layout, 2>(rows);
  return tile_function_of<Op, Layout, 1>(rows);
}

// One panel of B: vecs in 1 .. kTileVecs vectors wide, depth words deep, all rows of A. between() runs before every
// tile: a place for prefetches, a few at a time.
template <class Op, class Layout, class Between>
void gemm_panel(int64_t rows, int64_t vecs, int64_t depth, const typename Op::Word* a, int64_t lda,
                const typename Op::Word* b, int64_t ldb, float* c, int64_t ldc, bool accumulate, Between& between) {
  const int64_t full = rows / kTileRows * kTileRows;
  const TileFunction<Op> tile = tile_function<Op, Layout>(kTileRows, vecs);
  for (int64_t r = 0; r < full; r += kTileRows) {
    between();
    tile(a + r * Layout::row(lda), lda, b, ldb, depth, c + r * ldc, ldc, accumulate);
  }
  if (full == rows) return;
  between();
  tile_function<Op, Layout>(rows - full, vecs)(a + full * Layout::row(lda), lda, b, ldb, depth, c + full * ldc, ldc,
                                               accumulate);
}

// Tiles, and so calls of between(), in a product of that many rows and vectors of columns.
inline int64_t gemm_tiles(int64_t rows, int64_t vecs) {
  return (rows + kTileRows - 1) / kTileRows * ((vecs + kTileVecs - 1) / kTileVecs);
}

// B as consecutive panels [depth][width] with width = kTileCols, the last one as narrow as its vectors.
template <class Op, class Between>
void gemm_panels(int64_t rows, int64_t vecs, int64_t depth, const typename Op::Word* a, int64_t lda,
                 const typename Op::Word* panels, float* c, int64_t ldc, Between& between) {
  for (int64_t v = 0; v < vecs; v += kTileVecs) {
    const int64_t width = vecs - v < kTileVecs ? vecs - v : kTileVecs;
    gemm_panel<Op, RowMajor>(rows, width, depth, a, lda, panels + v * kLanes * depth, width * kLanes, c + v * kLanes,
                             ldc, false, between);
  }
}

// B row-major, vecs vectors wide.
template <class Op, class Layout, class Between>
void gemm_rows(int64_t rows, int64_t vecs, int64_t depth, const typename Op::Word* a, int64_t lda,
               const typename Op::Word* b, int64_t ldb, float* c, int64_t ldc, bool accumulate, Between& between) {
  for (int64_t v = 0; v < vecs; v += kTileVecs) {
    const int64_t width = vecs - v < kTileVecs ? vecs - v : kTileVecs;
    gemm_panel<Op, Layout>(rows, width, depth, a, lda, b + v * kLanes, ldb, c + v * kLanes, ldc, accumulate, between);
  }
}

}  // namespace MSVIT_ISA
}  // namespace msvit
