// Products of small matrices from register tiles: the inner loops of attention and of the patch embedding.
//
//   C[r][n] (+)= sum_k A(r, k) B[k][n],   C fp32
//
// Lanes run along n: a step over k loads one row of B as vectors and broadcasts one element of A per row of C. One
// accumulator per element of C adds its products in the order of k in fp32. So the bits of an element do not depend on
// the shape of the tile, nor on the rows and columns that are computed with it. Old values of C are added last: a sum
// over several calls is a sum of partial sums, which has a smaller error than one chain of additions.
//
// Operands are words of 4 bytes: one float (F32), or two bf16 that follow each other along k (Bf16Pairs: one vdpbf16ps
// per word).
#pragma once

#include <utility>

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

// Rows of C and vectors per row that one tile keeps in registers. Accumulators, operands and one temporary fill the 32
// vector registers of AVX-512 or the 16 of other levels. Attention uses the wide shape. The embedding uses the tall
// one, whose panels are narrower: 128 words of depth leave room in a first-level cache of 32 KiB.
template <int kRows_, int kVecs_>
struct TileShape {
  static constexpr int kRows = kRows_, kVecs = kVecs_, kCols = kVecs_ * kLanes;
};
#if defined(__AVX512F__)
using WideTile = TileShape<6, 4>;
using TallTile = TileShape<8, 3>;
#elif defined(__AVX__)
using WideTile = TileShape<6, 2>;
using TallTile = TileShape<6, 2>;
#else
using WideTile = TileShape<6, 2>;
using TallTile = TileShape<4, 2>;
#endif

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

template <class Op, class Layout, int kVecs, int... kRow>
TileFunction<Op> tile_function_of(int64_t rows, std::integer_sequence<int, kRow...>) {
  static constexpr TileFunction<Op> kTable[] = {gemm_tile<Op, Layout, kRow + 1, kVecs>...};
  return kTable[rows - 1];
}

// rows in 1 .. Shape::kRows, vecs in 1 .. Shape::kVecs.
template <class Op, class Layout, class Shape, int kVecs = Shape::kVecs>
TileFunction<Op> tile_function(int64_t rows, int64_t vecs) {
  if constexpr (kVecs > 1)
    if (vecs < kVecs) return tile_function<Op, Layout, Shape, kVecs - 1>(rows, vecs);
  return tile_function_of<Op, Layout, kVecs>(rows, std::make_integer_sequence<int, Shape::kRows>{});
}

// Products call between() before every tile, a place for a few prefetches. This one does nothing.
struct Nothing {
  void operator()() const {}
};

// All rows of A times one panel of B: vecs in 1 .. Shape::kVecs vectors wide, depth words deep.
template <class Op, class Layout, class Shape, class Between>
void gemm_panel(int64_t rows, int64_t vecs, int64_t depth, const typename Op::Word* a, int64_t lda,
                const typename Op::Word* b, int64_t ldb, float* c, int64_t ldc, bool accumulate, Between&& between) {
  const int64_t full = rows / Shape::kRows * Shape::kRows;
  const TileFunction<Op> tile = tile_function<Op, Layout, Shape>(Shape::kRows, vecs);
  for (int64_t r = 0; r < full; r += Shape::kRows) {
    between();
    tile(a + r * Layout::row(lda), lda, b, ldb, depth, c + r * ldc, ldc, accumulate);
  }
  if (full == rows) return;
  between();
  tile_function<Op, Layout, Shape>(rows - full, vecs)(a + full * Layout::row(lda), lda, b, ldb, depth, c + full * ldc,
                                                      ldc, accumulate);
}

// ---- attention's products, of WideTile

constexpr int kTileRows = WideTile::kRows, kTileVecs = WideTile::kVecs, kTileCols = WideTile::kCols;

// Tiles in a product of so many rows and vectors, which is how often between() is called.
inline int64_t gemm_tiles(int64_t rows, int64_t vecs) { return ceil_div(rows, kTileRows) * ceil_div(vecs, kTileVecs); }

// B as consecutive panels [depth][kTileCols]; the last one may be narrower.
template <class Op, class Between>
void gemm_panels(int64_t rows, int64_t vecs, int64_t depth, const typename Op::Word* a, int64_t lda,
                 const typename Op::Word* panels, float* c, int64_t ldc, Between&& between) {
  for (int64_t v = 0; v < vecs; v += kTileVecs) {
    const int64_t width = vecs - v < kTileVecs ? vecs - v : kTileVecs;
    gemm_panel<Op, RowMajor, WideTile>(rows, width, depth, a, lda, panels + v * kLanes * depth, width * kLanes,
                                       c + v * kLanes, ldc, false, between);
  }
}

// B row-major, vecs vectors wide.
template <class Op, class Layout, class Between>
void gemm_rows(int64_t rows, int64_t vecs, int64_t depth, const typename Op::Word* a, int64_t lda,
               const typename Op::Word* b, int64_t ldb, float* c, int64_t ldc, bool accumulate, Between&& between) {
  for (int64_t v = 0; v < vecs; v += kTileVecs) {
    const int64_t width = vecs - v < kTileVecs ? vecs - v : kTileVecs;
    gemm_panel<Op, Layout, WideTile>(rows, width, depth, a, lda, b + v * kLanes, ldb, c + v * kLanes, ldc, accumulate,
                                     between);
  }
}

}  // namespace MSVIT_ISA
}  // namespace msvit
