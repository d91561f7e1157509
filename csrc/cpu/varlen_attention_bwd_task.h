// One task of the backward: the products and derivatives of some query rows and some keys of one (sequence, head).
//
// The equations, the order of the sums and the division into tasks are in varlen_attention_bwd.cpp, which also writes
// the results to the tensors.
#pragma once

#include "varlen_attention_tasks.h"

namespace msvit {
namespace MSVIT_ISA {

// Internal linkage, so that the compiler optimises this as a part of the one file that includes it.
namespace {

constexpr int64_t kBlockRows = 8 * kTileRows;

template <class Op>
struct BackwardScratch {
  using Word = typename Op::Word;
  Word *keys_t, *values_t;                           // K^T, V^T panels of one key block
  Word* keys;                                        // K rows
  float *dk, *dv, *dw;                               // of one key block
  float *mantissas, *shifts;                         // of the weights of one key block
  Word *queries, *douts;                             // A operands of one row block
  Word *query_rows, *dout_rows;                      // B operands of the same rows; for F32 the same memory
  float *scores, *dprobs;                            // S and dP; for F32 then P and dS
  Word *probs_pairs, *dscores_pairs, *dscores_rows;  // for Bf16Pairs: P and dS, paired along queries; dS along keys
  Log2Factor* lse;                                   // of all rows of the task
  float *delta, *dq;
  int32_t* index;

  BackwardScratch(Arena& arena, int64_t padded_dim, int64_t rows, int64_t keys_of_longest) {
    const int64_t block = kBlockRows * kRowStride;
    keys_t = arena.take<Word>(kMaxKeys * padded_dim);
    values_t = arena.take<Word>(kMaxKeys * padded_dim);
    keys = arena.take<Word>(kMaxKeys * padded_dim);
    dk = arena.take<float>(kMaxKeys * padded_dim);
    dv = arena.take<float>(kMaxKeys * padded_dim);
    dw = arena.take<float>(kMaxKeys + kLanes);
    mantissas = arena.take<float>(kMaxKeys + kLanes);
    shifts = arena.take<float>(kMaxKeys + kLanes);
    queries = arena.take<Word>(block);
    douts = arena.take<Word>(block);
    scores = arena.take<float>(block);
    dprobs = arena.take<float>(block);
    if (Op::kPerWord == 1) {
      query_rows = queries, dout_rows = douts;
      probs_pairs = reinterpret_cast<Word*>(scores);
      dscores_pairs = dscores_rows = reinterpret_cast<Word*>(dprobs);
    } else {
      query_rows = arena.take<Word>(block / 2), dout_rows = arena.take<Word>(block / 2);
      probs_pairs = arena.take<Word>(block / 2), dscores_pairs = arena.take<Word>(block / 2);
      dscores_rows = arena.take<Word>(block);
    }
    lse = arena.take<Log2Factor>(rows);
    delta = arena.take<float>(rows);
    dq = arena.take<float>(round_up(rows, kBlockRows) * padded_dim);
    index = arena.take<int32_t>(keys_of_longest + 1);
  }
};

// Inputs of one task, from its first query row and its first key.
template <class T>
struct BackwardOperands {
  Rows<T> q, k, v, dout;
  int64_t rows, keys, active;  // keys take part in S and dP; the first `active` of them have weight
  const float* weight;         // null: all are 1
  WeightRange weights;
};

template <class Op, class T, bool kWeighted>
class BackwardTask {
  using Word = typename Op::Word;

 public:
  BackwardTask(BackwardScratch<Op>& scratch, const BackwardOperands<T>& operands, int64_t dim, float softmax_scale,
               bool want_dq, bool want_dkv)
      : s_(scratch),
        x_(operands),
        dim_(dim),
        vecs_(round_up(dim, kLanes) / kLanes),
        factor_(softmax_scale),
        want_dq_(want_dq),
        want_dkv_(want_dkv) {}

  // Computes keys [begin, begin + count): their dk and dv (unscaled) and dw are left in the scratch memory, and their
  // part is added to dq there.
  void run(int64_t begin, int64_t count, Prefetcher& ahead) {
    active_ = std::clamp<int64_t>(x_.active - begin, 0, count);
    pack_panels<Op, T>(s_.keys_t, x_.k.from(begin), count, dim_);
    pack_panels<Op, T>(s_.values_t, x_.v.from(begin), count, dim_);
    if (want_dq_) PackB<Op, T>::rows(s_.keys, x_.k.from(begin), active_, dim_, vecs_ * kLanes);
    if (kWeighted) pack_weights(begin, count);
    for (int64_t r = 0; r < x_.rows; r += kBlockRows)
      block(r, std::min(kBlockRows, x_.rows - r), count, begin == 0, ahead);
  }

 private:
  void pack_weights(int64_t begin, int64_t count) {
    for (int64_t j = 0; j < round_up(count, kLanes); ++j) {
      const float weight = j < count ? x_.weight[x_.k.index ? x_.k.index[begin + j] : begin + j] : 0.0f;
      const int32_t exponent = exponent_of(weight, x_.weights);
      s_.mantissas[j] = weight * power_of_2(-exponent);
      s_.shifts[j] = kExp2Shift + static_cast<float>(exponent - x_.weights.greatest);
    }
  }

  void block(int64_t r, int64_t rows, int64_t keys, bool first_keys, Prefetcher& ahead) {
    const int64_t key_vecs = round_up(keys, kLanes) / kLanes, ld = vecs_ * kLanes, words = dim_ / Op::kPerWord;
    PackA<Op, T>::rows(s_.queries, x_.q.from(r), rows, dim_);
    PackA<Op, T>::rows(s_.douts, x_.dout.from(r), rows, dim_);
    gemm_panels<Op>(rows, key_vecs, words, s_.queries, kRowStride, s_.keys_t, s_.scores, kRowStride, ahead);
    gemm_panels<Op>(rows, key_vecs, words, s_.douts, kRowStride, s_.values_t, s_.dprobs, kRowStride, ahead);
    for (int64_t v = 0; v < key_vecs; ++v)
      differentiate(v, r, rows, first_lanes(std::min<int64_t>(keys - v * kLanes, kLanes)));
    if (active_ == 0) return;
    if (want_dq_)
      gemm_rows<Op, RowMajor>(rows, vecs_, ceil_div(active_, Op::kPerWord), s_.dscores_rows, kRowStride, s_.keys, ld,
                              s_.dq + r * ld, ld, !first_keys, ahead);
    if (!want_dkv_) return;
    int64_t row_words = rows, ldb = kRowStride;
    if constexpr (Op::kPerWord == 2) {
      PackB<Op, T>::rows(s_.query_rows, x_.q.from(r), rows, dim_, ld);
      PackB<Op, T>::rows(s_.dout_rows, x_.dout.from(r), rows, dim_, ld);
      row_words = (rows + 1) / 2, ldb = ld;
    }
    gemm_rows<Op, Transposed>(active_, vecs_, row_words, s_.probs_pairs, kRowStride, s_.dout_rows, ldb, s_.dv, ld,
                              r > 0, ahead);
    gemm_rows<Op, Transposed>(active_, vecs_, row_words, s_.dscores_pairs, kRowStride, s_.query_rows, ldb, s_.dk, ld,
                              r > 0, ahead);
  }

  struct Pair {
    VecF p, ds;
  };

  // Weights of one vector of keys, and the lanes whose weight is not 0.
  struct Weights {
    VecF mantissa, shift, most;  // most: the greatest log2(P~) that does not overflow
    VecI active;
  };

  // P and dS of one row and one vector of keys. Adds t to dw, times 2^e of the weight.
  MSVIT_INLINE Pair element(int64_t offset, int64_t row, const Weights& weights, VecF& dw) {
    const VecF score = load(s_.scores + offset);
    VecF exponent = score * factor_.high - s_.lse[row].high;
    if (Op::kExactExp) exponent += score * factor_.low - s_.lse[row].low;
    const VecF p = kWeighted ? exp2_shifted<Op::kExactExp>(minimum(exponent, weights.most), weights.shift)
                             : exp2_below_128<Op::kExactExp>(exponent);
    const VecF t = p * (load(s_.dprobs + offset) - s_.delta[row]);
    dw += t;
    const VecF zero = {};
    if (kWeighted)
      return {select(weights.active, weights.mantissa * p, zero), select(weights.active, weights.mantissa * t, zero)};
    if (Op::kPerWord == 2) return {select(weights.active, p, zero), select(weights.active, t, zero)};
    return {p, t};
  }

  // P and dS of all rows of the block and one vector of keys: the column sum dw stays in a register.
  __attribute__((noinline)) void differentiate(int64_t v, int64_t first_row, int64_t rows, VecI valid) {
    Weights weights{{}, {}, {}, valid};
    if (kWeighted) {
      weights.mantissa = load(s_.mantissas + v * kLanes), weights.shift = load(s_.shifts + v * kLanes);
      weights.most = kExp2Shift + 127.0f - weights.shift;
      weights.active &= ~(weights.mantissa <= 0.0f);
    }
    VecF dw = {};
    if constexpr (Op::kPerWord == 1) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t offset = r * kRowStride + v * kLanes;
        const Pair x = element(offset, first_row + r, weights, dw);
        store(s_.scores + offset, x.p);
        store(s_.dprobs + offset, x.ds);
      }
    } else {
      for (int64_t r = 0; r < rows; r += 2) {
        const int64_t offset = r * kRowStride + v * kLanes, paired = r / 2 * kRowStride + v * kLanes;
        const Pair low = element(offset, first_row + r, weights, dw);
        const Pair high = r + 1 < rows ? element(offset + kRowStride, first_row + r + 1, weights, dw) : Pair{};
        store_bits(s_.probs_pairs + paired, bf16_pair(low.p, high.p));
        store_bits(s_.dscores_pairs + paired, bf16_pair(low.ds, high.ds));
        store_halves(s_.dscores_rows + r * kRowStride, v, low.ds);
        store_halves(s_.dscores_rows + (r + 1) * kRowStride, v, high.ds);
      }
    }
    store(s_.dw + v * kLanes, first_row == 0 ? dw : load(s_.dw + v * kLanes) + dw);
  }

  static MSVIT_INLINE VecU bf16_pair(VecF low, VecF high) { return to_bf16_bits(low) | to_bf16_bits(high) << 16; }
  static MSVIT_INLINE void store_halves(Word* words, int64_t v, VecF x) {
    *reinterpret_cast<VecHMem*>(words + v * kLanes / 2) = __builtin_convertvector(to_bf16_bits(x), VecH);
  }

  BackwardScratch<Op>& s_;
  const BackwardOperands<T>& x_;
  const int64_t dim_, vecs_;
  const Log2Factor factor_;
  const bool want_dq_, want_dkv_;
  int64_t active_ = 0;
};

}  // namespace

}  // namespace MSVIT_ISA
}  // namespace msvit
