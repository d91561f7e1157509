// Shared by forward and backward of attention: rows of a sequence, the order of the work, the keys that take part.
#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "simd/pack.h"
#include "varlen_attention.h"

namespace msvit {
namespace MSVIT_ISA {

constexpr int64_t kMaxKeys = 256;       // keys of one block: scores of a row block stay in L1, packed keys in L2
constexpr double kSerialWork = 5e5;     // multiply-adds; below, waking other threads costs more than it saves
constexpr int64_t kTasksPerThread = 4;  // enough to balance tasks of unequal cost when the longest start first

static_assert(kMaxKeys + kLanes <= kRowStride, "a row of scores must fit the row stride");

struct Span {
  int64_t begin, end;
  int64_t length() const { return end - begin; }
};

// Rows of sequence b, clamped to [0, total).
inline Span sequence_span(const int32_t* cu_seqlens, int64_t b, int64_t total) {
  const int64_t begin = std::clamp<int64_t>(cu_seqlens[b], 0, total);
  return {begin, std::clamp<int64_t>(cu_seqlens[b + 1], begin, total)};
}

struct Task {
  int32_t sequence, head;
  int64_t begin, end;  // query rows (or keys), counted from the first of the sequence
};

// Size of the blocks that n items are divided into: equal, at most `largest`, a multiple of `multiple`. Blocks of keys
// have constant limits: so the order of the sums over them depends on n alone.
inline int64_t even_block(int64_t n, int64_t largest, int64_t multiple) {
  const int64_t blocks = std::max<int64_t>(1, ceil_div(n, largest));
  return std::max(multiple, round_up(ceil_div(n, blocks), multiple));
}

// Sequences by falling work; equal ones keep their order.
template <class Args>
std::vector<int32_t> longest_first(const Args& a) {
  std::vector<int32_t> order(a.batch);
  for (int64_t b = 0; b < a.batch; ++b) order[b] = static_cast<int32_t>(b);
  const auto work = [&](int32_t b) {
    return sequence_span(a.cu_seqlens_q, b, a.total_q).length() * sequence_span(a.cu_seqlens_k, b, a.total_k).length();
  };
  std::stable_sort(order.begin(), order.end(), [&](int32_t x, int32_t y) { return work(x) > work(y); });
  return order;
}

template <class Args>
double multiply_adds(const Args& a) {
  double pairs = 0;
  for (int64_t b = 0; b < a.batch; ++b)
    pairs += static_cast<double>(sequence_span(a.cu_seqlens_q, b, a.total_q).length()) *
             sequence_span(a.cu_seqlens_k, b, a.total_k).length();
  return pairs * a.num_heads * a.head_dim * 2;
}

// The keys that take part: those whose weight is not zero. If all do, index is null.
struct Keys {
  int64_t count;
  const int32_t* index;
};

inline Keys weighted_keys(const float* weight, int64_t n, int32_t* index) {
  if (weight == nullptr) return {n, nullptr};
  int64_t count = 0;
  for (int64_t j = 0; j < n; ++j) {
    index[count] = static_cast<int32_t>(j);
    count += !(weight[j] <= 0.0f);
  }
  return {count, count == n ? nullptr : index};
}

// The weights of a sequence: the exponent of the greatest, and whether another that is not 0 is so much smaller that
// the greatest weighted score may be another than the greatest score by more than fp32 can hold.
struct WeightRange {
  int32_t greatest = 0;
  bool wide = false;
};

// A weight is kept as mantissa * 2^exponent, exactly, because the weight itself may be subnormal, or overflow in a sum.
// The mantissa is in [1, 4) for weights from 2^-64 on and smaller for others, whose exponent is -64.
MSVIT_INLINE int32_t exponent_of(float weight) { return std::clamp((bit_cast<int32_t>(weight) >> 23) - 127, -64, 126); }

// The exponent that P~ of a key is multiplied by in the backward: that of its weight. If that is 0, P~ has no bound,
// but is 2^-greatest or so; this exponent leaves it room above and below.
MSVIT_INLINE int32_t exponent_of(float weight, WeightRange range) {
  return weight <= 0.0f ? std::max(range.greatest - 64, -64) : exponent_of(weight);
}

inline WeightRange weight_range(const float* weight, int64_t n) {
  constexpr int32_t kWideExponents = 40;
  int32_t most = 0, least = INT32_MAX;
  for (int64_t j = 0; j < n; ++j) {
    const int32_t bits = bit_cast<int32_t>(weight[j]);  // bits of positive floats have their order
    most = std::max(most, bits);
    least = std::min(least, bits > 0 ? bits : INT32_MAX);
  }
  return {exponent_of(bit_cast<float>(most)), (most >> 23) - (least >> 23) > kWideExponents};
}

}  // namespace MSVIT_ISA
}  // namespace msvit
