// Forward of variable-length attention on the CPU.
//
//   out_i = sum_j w_j exp(s_ij) v_j / sum_p w_p exp(s_ip),   s_ij = softmax_scale * q_i . k_j
//   lse_i = log sum_j w_j exp(s_ij),   w = key_weight          (eq. 10 of MSViT, arXiv 2307.02321; docs/operators.md)
//
// One task computes a range of query rows of one (sequence, head). For each block of at most kMaxKeys keys it packs K^T
// and V once. Then for each kBlockRows query rows it computes S = Q K^T (lanes along keys), the softmax in place while
// S is in the first-level cache, and O += P V (lanes along head_dim). With more than one key block the softmax is
// online (FlashAttention, arXiv 2205.14135): older sums are rescaled to the new maximum. A task reads k and v once,
// reads q once per key block, and writes out and lse once. Keys of weight 0 are left out when packing, so they cost
// nothing. Powers of 2 in the weights are added to exponents, so that neither P nor a sum overflows (exponent_of).
//
// Products, softmax and sums are fp32. With AVX512-BF16, bf16 inputs are multiplied as pairs (products are exact, sums
// fp32) and P is rounded to bf16 first. The bits of a row depend on its query, the keys of its sequence, and the head:
// key blocks depend on the number of keys alone, and the rows that a task computes together do not affect one another.
#include <cmath>
#include <type_traits>

#include "varlen_attention_tasks.h"

namespace msvit {
namespace MSVIT_ISA {

namespace {

constexpr int64_t kBlockRows = 4 * kTileRows;  // query rows whose scores are in L1 together
constexpr int64_t kMaxTaskRows = 10 * kBlockRows;

template <class Op>
struct ForwardScratch {
  using Word = typename Op::Word;
  Word* keys;                 // K^T panels of one key block
  Word* values;               // V rows of one key block
  Word* queries;              // one row block
  float* scores;              // one row block; P in words afterwards
  float *mantissas, *shifts;  // of the weights of one key block
  float* outputs;             // [kMaxTaskRows][padded head_dim], unnormalised
  float* row_max;             // [kMaxTaskRows]
  float* row_sum;
  float* block_max;  // [kBlockRows]
  int32_t* index;

  ForwardScratch(Arena& arena, int64_t padded_dim, int64_t longest)
      : keys(arena.take<Word>(kMaxKeys * padded_dim)),
        values(arena.take<Word>(kMaxKeys * padded_dim)),
        queries(arena.take<Word>(kBlockRows * kRowStride)),
        scores(arena.take<float>(kBlockRows * kRowStride)),
        mantissas(arena.take<float>(kMaxKeys + kLanes)),
        shifts(arena.take<float>(kMaxKeys + kLanes)),
        outputs(arena.take<float>(kMaxTaskRows * padded_dim)),
        row_max(arena.take<float>(kMaxTaskRows)),
        row_sum(arena.take<float>(kMaxTaskRows)),
        block_max(arena.take<float>(kBlockRows)),
        index(arena.take<int32_t>(longest + 1)) {}
};

MSVIT_INLINE void store_probabilities(float* words, int64_t v, VecF p) { store(words + v * kLanes, p); }
#ifdef __AVX512BF16__
MSVIT_INLINE void store_probabilities(uint32_t* words, int64_t v, VecF p) {
  const __m256bh half = _mm512_cvtneps_pbh(p);
  std::memcpy(words + v * kLanes / 2, &half, sizeof half);
}
#endif

// Operands of one task: rows of one sequence and head, from its first query row and from the first key.
template <class T>
struct Operands {
  Rows<T> q, k, v;
  const float* weight;  // null: all ones
  WeightRange weights;
  T* out;
  int64_t out_stride;
  float* lse;
  int64_t rows, keys;
};

template <class Op, class T, bool kWeighted>
class ForwardTask {
  using Word = typename Op::Word;

 public:
  // Scores are scaled by |softmax_scale|: if it is negative, queries change their sign.
  ForwardTask(ForwardScratch<Op>& scratch, const Operands<T>& operands, int64_t dim, float softmax_scale)
      : s_(scratch),
        x_(operands),
        dim_(dim),
        vecs_(round_up(dim, kLanes) / kLanes),
        scale_(std::abs(softmax_scale)),
        factor_(scale_),
        negative_(softmax_scale < 0.0f) {}

  // While the last key block is computed, `next` reads the rows of the task that follows.
  void run(Prefetcher next) {
    const int64_t block = even_block(x_.keys, kMaxKeys, kLanes);
    for (int64_t begin = 0; begin < x_.keys; begin += block) {
      const int64_t count = std::min(block, x_.keys - begin), after = begin + block,
                    key_vecs = round_up(count, kLanes) / kLanes;
      const bool last = after >= x_.keys;
      Prefetcher ahead = last ? next : keys_ahead(after, std::min(block, x_.keys - after));
      ahead.spread_over(gemm_tiles(x_.rows, key_vecs) + gemm_tiles(x_.rows, vecs_));
      pack_panels<Op, T>(s_.keys, x_.k.from(begin), count, dim_);
      PackB<Op, T>::rows(s_.values, x_.v.from(begin), count, dim_, vecs_ * kLanes);
      if (kWeighted) pack_weights(begin, count);
      for (int64_t r = 0; r < x_.rows; r += kBlockRows) {
        const int64_t rows = std::min(kBlockRows, x_.rows - r);
        attend(r, rows, count, begin == 0, ahead);
        if (last) write(r, rows);
      }
    }
  }

 private:
  Prefetcher keys_ahead(int64_t begin, int64_t count) const {
    Prefetcher ahead(dim_ * sizeof(T));
    if (x_.k.index) return ahead;  // the rows are not evenly spaced
    ahead.add(x_.k[begin], x_.k.stride * sizeof(T), count);
    ahead.add(x_.v[begin], x_.v.stride * sizeof(T), count);
    return ahead;
  }

  void pack_weights(int64_t begin, int64_t count) {
    for (int64_t j = 0; j < round_up(count, kLanes); ++j) {
      const float weight = j < count ? x_.weight[x_.k.index ? x_.k.index[begin + j] : begin + j] : 0.0f;
      const int32_t exponent = exponent_of(weight);
      s_.mantissas[j] = weight * power_of_2(-exponent);
      s_.shifts[j] = kExp2Shift + static_cast<float>(exponent - x_.weights.greatest);
    }
  }

  void attend(int64_t first_row, int64_t rows, int64_t keys, bool first_block, Prefetcher& ahead) {
    const int64_t key_vecs = round_up(keys, kLanes) / kLanes, ldo = vecs_ * kLanes;
    int64_t ldq = kRowStride;
    const Word* queries = query_rows(first_row, rows, ldq);
    gemm_panels<Op>(rows, key_vecs, dim_ / Op::kPerWord, queries, ldq, s_.keys, s_.scores, kRowStride, ahead);
    float* row_max = s_.row_max + first_row;
    maxima(rows, key_vecs, first_lanes(keys - (key_vecs - 1) * kLanes), s_.block_max);
    if (kWeighted && x_.weights.wide) weighted_maxima(rows, key_vecs, keys, s_.block_max);
    for (int64_t r = 0; r < rows; ++r)
      if (first_block)
        row_max[r] = s_.block_max[r], s_.row_sum[first_row + r] = 0.0f;
      else
        rescale(first_row + r, s_.block_max[r]);
    exponentials(rows, key_vecs, first_lanes(keys - (key_vecs - 1) * kLanes), row_max, s_.row_sum + first_row);
    gemm_rows<Op, RowMajor>(rows, vecs_, ceil_div(keys, Op::kPerWord), reinterpret_cast<Word*>(s_.scores), kRowStride,
                            s_.values, ldo, s_.outputs + first_row * ldo, ldo, !first_block, ahead);
  }

  // Floats are read in place, everything else from a copy.
  const Word* query_rows(int64_t first_row, int64_t rows, int64_t& ldq) {
    if constexpr (std::is_same_v<T, Word>) {
      if (!negative_) {
        ldq = x_.q.stride;
        return x_.q[first_row];
      }
    }
    PackA<Op, T>::rows(s_.queries, x_.q.from(first_row), rows, dim_);
    if (negative_) negate<Op>(s_.queries, rows, dim_);
    return s_.queries;
  }

  // The largest score of every row. Not inlined, nor is exponentials: so their constants stay in registers.
  __attribute__((noinline)) void maxima(int64_t rows, int64_t vecs, VecI last_lanes, float* row_max) const {
    for (int64_t r = 0; r < rows; ++r) {
      const float* scores = s_.scores + r * kRowStride;
      VecF top = select(last_lanes, load(scores + (vecs - 1) * kLanes), splat(-__builtin_inff()));
      for (int64_t v = 0; v < vecs - 1; ++v) top = maximum(top, load(scores + v * kLanes));
      row_max[r] = reduce_max(top);
    }
  }

  // Changes the maxima to those of the weighted scores, in units of scores.
  void weighted_maxima(int64_t rows, int64_t vecs, int64_t keys, float* row_max) const {
    for (int64_t r = 0; r < rows; ++r) {
      if (row_max[r] == -__builtin_inff()) continue;
      VecF top = splat(-__builtin_inff());
      for (int64_t v = 0; v < vecs; ++v) {
        const VecF distance = load(s_.scores + r * kRowStride + v * kLanes) - row_max[r];
        const VecF exponent = distance * factor_.high + (load(s_.shifts + v * kLanes) - kExp2Shift);
        top = maximum(top, select(first_lanes(std::min<int64_t>(keys - v * kLanes, kLanes)), exponent, top));
      }
      const float exponent = reduce_max(top);
      if (exponent < 0.0f) row_max[r] += exponent / factor_.high;
    }
  }

  // Replaces scores by P = w exp(softmax_scale (q.k - row_max)) and adds their sum to row_sum.
  __attribute__((noinline)) void exponentials(int64_t rows, int64_t vecs, VecI last_lanes, const float* row_max,
                                              float* row_sum) const {
    const Log2Factor factor = factor_;
    for (int64_t r = 0; r < rows; ++r) {
      float* scores = s_.scores + r * kRowStride;
      Word* words = reinterpret_cast<Word*>(scores);
      const VecF top = splat(row_max[r] == -__builtin_inff() ? 0.0f : row_max[r]);  // -inf - -inf would be NaN
      VecF sum = {};
      for (int64_t v = 0; v < vecs - 1; ++v) {
        const VecF p = probability(scores, v, top, factor);
        store_probabilities(words, v, p);
        sum += p;
      }
      const VecF p = select(last_lanes, probability(scores, vecs - 1, top, factor), VecF{});
      store_probabilities(words, vecs - 1, p);
      row_sum[r] += reduce_add(sum + p);
    }
  }

  MSVIT_INLINE VecF probability(const float* scores, int64_t v, VecF top, Log2Factor factor) const {
    const VecF distance = load(scores + v * kLanes) - top;
    const VecF exponent = Op::kExactExp ? distance * factor.high + distance * factor.low : distance * factor.high;
    if (!kWeighted) return exp2_below_128<Op::kExactExp>(exponent);
    return exp2_shifted<Op::kExactExp>(exponent, load(s_.shifts + v * kLanes)) * load(s_.mantissas + v * kLanes);
  }

  // Rescales the sums over earlier key blocks if this block has a larger maximum.
  void rescale(int64_t row, float block_max) {
    const float old = s_.row_max[row], distance = old - block_max;
    if (!(distance < 0.0f)) return;
    const float factor = exp2_below_128<true>(splat(distance * factor_.high + distance * factor_.low))[0];
    s_.row_max[row] = block_max;
    s_.row_sum[row] *= factor;
    float* o = s_.outputs + row * vecs_ * kLanes;
    for (int64_t v = 0; v < vecs_; ++v) store(o + v * kLanes, load(o + v * kLanes) * factor);
  }

  void write(int64_t first_row, int64_t rows) {
    constexpr double kLn2 = 0.6931471805599453;
    for (int64_t r = first_row; r < first_row + rows; ++r) {
      const float sum = s_.row_sum[r];  // 0 if all scores are -inf
      write_scaled(x_.out + r * x_.out_stride, s_.outputs + r * vecs_ * kLanes, sum == 0.0f ? 0.0f : 1.0f / sum, dim_);
      const double log_sum = std::log(sum) + x_.weights.greatest * kLn2;
      x_.lse[r] = static_cast<float>(static_cast<double>(s_.row_max[r]) * scale_ + log_sum);
    }
  }

  ForwardScratch<Op>& s_;
  const Operands<T>& x_;
  const int64_t dim_, vecs_;
  const float scale_;
  const Log2Factor factor_;
  const bool negative_;
};

template <class Op, class T>
class Forward {
 public:
  explicit Forward(const VarlenAttentionFwdArgs& args) : a(args), padded_dim_(round_up(a.head_dim, kLanes)) {}

  void operator()() const {
    const double work = multiply_adds(a);
    const int threads = work < kSerialWork ? 1 : std::max(1, a.num_threads);
    int64_t longest = 0;
    for (int64_t b = 0; b < a.batch; ++b) longest = std::max(longest, key_span(b).length());
    const size_t bytes = round_up(scratch_bytes(longest), 4096);
    static thread_local Workspace workspace;
    char* memory = workspace.reserve(bytes * threads);
    for_each_task(tasks(threads, work), a.num_heads, threads, memory, bytes,
                  [&](const Task& task, const Task* next, char* scratch) {
                    Arena arena(scratch);
                    ForwardScratch<Op> s(arena, padded_dim_, longest);
                    run(task, next, s);
                  });
  }

 private:
  Span query_span(int64_t b) const { return sequence_span(a.cu_seqlens_q, b, a.total_q); }
  Span key_span(int64_t b) const { return sequence_span(a.cu_seqlens_k, b, a.total_k); }

  size_t scratch_bytes(int64_t longest) const {
    Arena arena(nullptr);
    ForwardScratch<Op> s(arena, padded_dim_, longest);
    return arena.used();
  }

  // Every (sequence, head), divided into row ranges if it is long or if the threads need more tasks.
  std::vector<Task> tasks(int threads, double work) const {
    const double target = threads == 1 ? work : work / (threads * kTasksPerThread);
    std::vector<Task> list;
    for (const int32_t b : longest_first(a)) {
      const int64_t rows = query_span(b).length();
      const double row_work = 2.0 * key_span(b).length() * a.head_dim;
      const double affordable = row_work > 0 ? target / row_work : rows;
      const int64_t largest = std::clamp<int64_t>(
          static_cast<int64_t>(std::min<double>(affordable, kMaxTaskRows)) / kBlockRows * kBlockRows, 2 * kBlockRows,
          kMaxTaskRows);
      const int64_t step = even_block(rows, largest, kBlockRows);
      for (int64_t begin = 0; begin < rows; begin += step)
        for (int32_t h = 0; h < a.num_heads; ++h) list.push_back({b, h, begin, std::min(begin + step, rows)});
    }
    return list;
  }

  Operands<T> operands(const Task& task) const {
    const Span queries = query_span(task.sequence), keys = key_span(task.sequence);
    const int64_t first = queries.begin + task.begin, h = task.head;
    Operands<T> x;
    x.q = {static_cast<const T*>(a.q) + h * a.q_stride_head + first * a.q_stride_token, a.q_stride_token, nullptr};
    x.k = {static_cast<const T*>(a.k) + h * a.k_stride_head + keys.begin * a.k_stride_token, a.k_stride_token, nullptr};
    x.v = {static_cast<const T*>(a.v) + h * a.v_stride_head + keys.begin * a.v_stride_token, a.v_stride_token, nullptr};
    x.weight = a.key_weight ? a.key_weight + keys.begin : nullptr;
    x.out = static_cast<T*>(a.out) + (first * a.num_heads + h) * a.head_dim;
    x.out_stride = a.num_heads * a.head_dim;
    x.lse = a.lse + h * a.total_q + first;
    x.rows = task.end - task.begin;
    x.keys = keys.length();
    return x;
  }

  void run(const Task& task, const Task* next, ForwardScratch<Op>& s) const {
    Prefetcher prefetcher(a.head_dim * sizeof(T));
    if (next) {
      const Operands<T> x = operands(*next);
      prefetcher.add(x.k.base, x.k.stride * sizeof(T), std::min(x.keys, kMaxKeys));
      prefetcher.add(x.v.base, x.v.stride * sizeof(T), std::min(x.keys, kMaxKeys));
      prefetcher.add(x.q.base, x.q.stride * sizeof(T), x.rows);
      prefetcher.add(x.out, x.out_stride * sizeof(T), x.rows);
    }
    Operands<T> x = operands(task);
    const Keys used = weighted_keys(x.weight, x.keys, s.index);
    x.keys = used.count;
    x.k.index = x.v.index = used.index;
    if (x.keys == 0) return write_empty(x);
    if (x.weight) x.weights = weight_range(x.weight, key_span(task.sequence).length());
    if (x.weight)
      ForwardTask<Op, T, true>(s, x, a.head_dim, a.softmax_scale).run(prefetcher);
    else
      ForwardTask<Op, T, false>(s, x, a.head_dim, a.softmax_scale).run(prefetcher);
  }

  void write_empty(const Operands<T>& x) const {
    for (int64_t r = 0; r < x.rows; ++r) {
      std::memset(x.out + r * x.out_stride, 0, a.head_dim * sizeof(T));
      x.lse[r] = -__builtin_inff();
    }
  }

  const VarlenAttentionFwdArgs& a;
  const int64_t padded_dim_;
};

}  // namespace

void varlen_attention_fwd(const VarlenAttentionFwdArgs& a) {
  if (!a.is_bf16) return Forward<F32, float>(a)();
#ifdef __AVX512BF16__
  return Forward<Bf16Pairs, Bf16>(a)();
#else
  return Forward<F32, Bf16>(a)();
#endif
}

}  // namespace MSVIT_ISA
}  // namespace msvit
