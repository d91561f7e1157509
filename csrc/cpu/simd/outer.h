// Register tiles with free strides: C[r][lane] += sum_k A(r, k) B[k][lane], all fp32 in memory but for bf16 pairs.
//
// The sum of one call runs over k in order in one register and is added to C at the end, so a long sum made of several
// calls is a sum of partial sums (smaller error), and its bits depend on nothing but where the calls cut it.
#pragma once

#include "gemm.h"

namespace msvit {
namespace MSVIT_ISA {

// Accumulators, operands and one temporary fill 32 vector registers on AVX-512 and 16 elsewhere.
#if defined(__AVX512F__)
constexpr int kOuterRows = 8, kOuterVecs = 3;
#elif defined(__AVX__)
constexpr int kOuterRows = 6, kOuterVecs = 2;
#else
constexpr int kOuterRows = 4, kOuterVecs = 2;
#endif
constexpr int kPanelWidth = kOuterVecs * kLanes;

template <class Word>
struct Operand {
  const Word* data;
  int64_t row, step;  // A(r, k) = data[r * row + k * step]
};

template <class Op, int kRows, int kVecs>
void outer_tile(Operand<typename Op::Word> a, const typename Op::Word* b, int64_t b_step, int64_t depth, float* c,
                int64_t c_row) {
  VecF acc[kRows][kVecs] = {};
  const typename Op::Word* a_row[kRows];
  MSVIT_UNROLL
  for (int r = 0; r < kRows; ++r) a_row[r] = a.data + r * a.row;
  int64_t offset = 0;
  for (int64_t k = 0; k < depth; ++k) {
    VecF vecs[kVecs];
    MSVIT_UNROLL
    for (int n = 0; n < kVecs; ++n) vecs[n] = load(b + n * kLanes);
    MSVIT_UNROLL
    for (int r = 0; r < kRows; ++r) {
      MSVIT_UNROLL
      for (int n = 0; n < kVecs; ++n) acc[r][n] = Op::multiply_add(acc[r][n], a_row[r][offset], vecs[n]);
    }
    offset += a.step;
    b += b_step;
  }
  MSVIT_UNROLL
  for (int r = 0; r < kRows; ++r) {
    MSVIT_UNROLL
    for (int n = 0; n < kVecs; ++n) store(c + r * c_row + n * kLanes, load(c + r * c_row + n * kLanes) + acc[r][n]);
  }
}

template <class Op>
using OuterFunction = void (*)(Operand<typename Op::Word>, const typename Op::Word*, int64_t, int64_t, float*, int64_t);

template <class Op, int kVecs>
OuterFunction<Op> outer_function_of(int64_t rows) {
  switch (rows) {
    case 1: return outer_tile<Op, 1, kVecs>;
    case 2: return outer_tile<Op, 2, kVecs>;
    case 3: return outer_tile<Op, 3, kVecs>;
    case 4: return outer_tile<Op, 4, kVecs>;
#if defined(__AVX__)
    case 5: return outer_tile<Op, 5, kVecs>;
    case 6: return outer_tile<Op, 6, kVecs>;
#endif
#if defined(__AVX512F__)
    case 7: return outer_tile<Op, 7, kVecs>;
    case 8: return outer_tile<Op, 8, kVecs>;
#endif
  }
  return nullptr;
}

// rows in 1 .. kOuterRows, vecs in 1 .. kOuterVecs.
template <class Op>
OuterFunction<Op> outer_function(int64_t rows, int64_t vecs) {
#if defined(__AVX512F__)
  if (vecs == 3) return outer_function_of<Op, 3>(rows);
#endif
  return vecs == 2 ? outer_function_of<Op, 2>(rows) : outer_function_of<Op, 1>(rows);
}

// All rows of A against one panel of vecs vectors.
template <class Op>
void outer_panel(int64_t rows, int64_t vecs, Operand<typename Op::Word> a, const typename Op::Word* b, int64_t b_step,
                 int64_t depth, float* c, int64_t c_row) {
  for (int64_t r = 0; r < rows; r += kOuterRows) {
    const int64_t count = rows - r < kOuterRows ? rows - r : kOuterRows;
    outer_function<Op>(count, vecs)({a.data + r * a.row, a.row, a.step}, b, b_step, depth, c + r * c_row, c_row);
  }
}

}  // namespace MSVIT_ISA
}  // namespace msvit
