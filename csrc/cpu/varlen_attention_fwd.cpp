// Forward of variable-length attention on the CPU.
//
//   out_i = sum_j w_j exp(s_ij) v_j / sum_p w_p exp(s_ip),   s_ij = softmax_scale * q_i . k_j      (eq. 10; w = key_weight)
//   lse_i = log sum_j w_j exp(s_ij)
//
// One task is a range of query rows of one (sequence, head). Per block of at most kMaxKeys keys it packs K^T and V once, then
// per kBlockRows query rows: S = Q K^T (lanes along keys), softmax in place while S is in L1, O += P V (lanes along head_dim).
// More than one key block: online softmax. Keys of weight 0 are left out when packing, so they cost nothing.
// Products, softmax and sums are fp32; with AVX512-BF16, bf16 inputs are multiplied as pairs (exact products, fp32 sums) and P
// is rounded to bf16 first. A row's bits depend on its own query, its sequence's keys and the head alone: key blocks are a
// function of the number of keys, and the range of rows that a task got changes nothing.
#include <cmath>

#include "varlen_attention_tasks.h"

namespace msvit {
namespace MSVIT_ISA {

namespace {

constexpr int64_t kBlockRows = 4 * kTileRows;  // query rows whose scores are in L1 together
constexpr int64_t kMaxTaskRows = 10 * kBlockRows;
constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

template <class Op>
struct Scratch {
  using Word = typename Op::Word;
  Word* keys;        // K^T panels of one key block
  Word* values;      // V rows of one key block
  Word* queries;     // one row block
  float* scores;     // one row block; P in words afterwards
  float* weights;    // of one key block
  float* outputs;    // [kMaxTaskRows][padded head_dim], unnormalised
  float* row_max;    // [kMaxTaskRows], in units of log2
  float* row_sum;
  int32_t* index;

  Scratch(Arena& arena, int64_t padded_dim, int64_t longest)
      : keys(arena.take<Word>(kMaxKeys * padded_dim)),
        values(arena.take<Word>(kMaxKeys * padded_dim)),
        queries(arena.take<Word>(kBlockRows * kRowStride)),
        scores(arena.take<float>(kBlockRows * kRowStride)),
        weights(arena.take<float>(kMaxKeys + kLanes)),
        outputs(arena.take<float>(kMaxTaskRows * padded_dim)),
        row_max(arena.take<float>(kMaxTaskRows)),
        row_sum(arena.take<float>(kMaxTaskRows)),
        index(arena.take<int32_t>(longest + 1)) {}
};

MSVIT_INLINE void store_probabilities(float* words, int64_t v, VecF p) { store(words + v * kLanes, p); }
#ifdef __AVX512BF16__
MSVIT_INLINE void store_probabilities(uint32_t* words, int64_t v, VecF p) {
  const __m256bh half = _mm512_cvtneps_pbh(p);
  std::memcpy(words + v * kLanes / 2, &half, sizeof half);
}
#endif

template <class Op, bool kWeighted>
class ForwardTask {
  using Word = typename Op::Word;

 public:
  ForwardTask(Scratch<Op>& scratch, int64_t dim, float softmax_scale)
      : s_(scratch), dim_(dim), vecs_(round_up(dim, kLanes) / kLanes), scale_(softmax_scale * kLog2e) {}

  template <class T>
  void run(Rows<T> q, Rows<T> k, Rows<T> v, const float* weight, int64_t rows, int64_t keys) {
    const int64_t block = even_block(keys, kMaxKeys, kLanes);
    for (int64_t begin = 0; begin < keys; begin += block) {
      const int64_t count = std::min(block, keys - begin);
      pack_panels<Op, T>(s_.keys, k.from(begin), count, dim_);
      PackB<Op, T>::rows(s_.values, v.from(begin), count, dim_, vecs_ * kLanes);
      if (kWeighted) pack_weights(weight, k.index, begin, count);
      for (int64_t r = 0; r < rows; r += kBlockRows) {
        const int64_t block_rows = std::min(kBlockRows, rows - r);
        PackA<Op, T>::rows(s_.queries, q.from(r), block_rows, dim_);
        attend(r, block_rows, count, begin == 0);
      }
    }
  }

 private:
  void pack_weights(const float* weight, const int32_t* index, int64_t begin, int64_t count) {
    for (int64_t j = 0; j < count; ++j) s_.weights[j] = weight[index ? index[begin + j] : begin + j];
    for (int64_t j = count; j < round_up(count, kLanes); ++j) s_.weights[j] = 0.0f;
  }

  void attend(int64_t first_row, int64_t rows, int64_t keys, bool first_block) {
    const int64_t key_vecs = round_up(keys, kLanes) / kLanes, ldo = vecs_ * kLanes;
    gemm_panels<Op>(rows, key_vecs, dim_ / Op::kPerWord, s_.queries, s_.keys, s_.scores, kRowStride);
    const VecI last_lanes = first_lanes(keys - (key_vecs - 1) * kLanes);
    for (int64_t r = 0; r < rows; ++r)
      softmax_row(first_row + r, s_.scores + r * kRowStride, key_vecs - 1, last_lanes, first_block);
    gemm_rows<Op, RowMajor>(rows, vecs_, (keys + Op::kPerWord - 1) / Op::kPerWord, reinterpret_cast<Word*>(s_.scores),
                            s_.values, ldo, s_.outputs + first_row * ldo, ldo, !first_block);
  }

  // The maximum is taken of softmax_scale * log2(e) * q.k, so a negative scale needs no case of its own.
  void softmax_row(int64_t row, float* scores, int64_t full_vecs, VecI last_lanes, bool first_block) {
    VecF top = splat(-__builtin_inff());
    for (int64_t v = 0; v < full_vecs; ++v) top = maximum(top, load(scores + v * kLanes) * scale_);
    top = maximum(top, select(last_lanes, load(scores + full_vecs * kLanes) * scale_, top));
    float row_max = reduce_max(top);
    if (!first_block) row_max = rescale(row, row_max);

    Word* words = reinterpret_cast<Word*>(scores);
    VecF sum = {};
    for (int64_t v = 0; v < full_vecs; ++v) {
      const VecF p = probability(scores, v, row_max);
      store_probabilities(words, v, p);
      sum += p;
    }
    const VecF p = select(last_lanes, probability(scores, full_vecs, row_max), VecF{});
    store_probabilities(words, full_vecs, p);
    s_.row_max[row] = row_max;
    s_.row_sum[row] = (first_block ? 0.0f : s_.row_sum[row]) + reduce_add(sum + p);
  }

  MSVIT_INLINE VecF probability(const float* scores, int64_t v, float row_max) {
    const VecF p = exp2_below_128(load(scores + v * kLanes) * scale_ - row_max);
    return kWeighted ? p * load(s_.weights + v * kLanes) : p;
  }

  // Brings what earlier key blocks left to the larger of the two maxima, and returns that.
  float rescale(int64_t row, float block_max) {
    const float old = s_.row_max[row];
    if (!(block_max > old)) return old;
    const float factor = exp2_below_128(splat(old - block_max))[0];
    s_.row_sum[row] *= factor;
    float* o = s_.outputs + row * vecs_ * kLanes;
    for (int64_t v = 0; v < vecs_; ++v) store(o + v * kLanes, load(o + v * kLanes) * factor);
    return block_max;
  }

  Scratch<Op>& s_;
  const int64_t dim_, vecs_;
  const float scale_;
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
    for_each_task(tasks(threads, work), threads, memory, bytes, [&](const Task& task, char* scratch) {
      Arena arena(scratch);
      Scratch<Op> s(arena, padded_dim_, longest);
      run(task, s);
    });
  }

 private:
  Span query_span(int64_t b) const { return sequence_span(a.cu_seqlens_q, b, a.total_q); }
  Span key_span(int64_t b) const { return sequence_span(a.cu_seqlens_k, b, a.total_k); }

  size_t scratch_bytes(int64_t longest) const {
    Arena arena(nullptr);
    Scratch<Op> s(arena, padded_dim_, longest);
    return arena.used();
  }

  // Every (sequence, head); in several row ranges where it is long, or where there would be too few tasks for the threads.
  std::vector<Task> tasks(int threads, double work) const {
    const double target = threads == 1 ? work : work / (threads * kTasksPerThread);
    std::vector<Task> list;
    for (const int32_t b : longest_first(a)) {
      const int64_t rows = query_span(b).length();
      const double row_work = 2.0 * key_span(b).length() * a.head_dim;
      const double affordable = row_work > 0 ? target / row_work : rows;
      const int64_t largest = std::clamp<int64_t>(static_cast<int64_t>(std::min<double>(affordable, kMaxTaskRows)) /
                                                      kBlockRows * kBlockRows, 2 * kBlockRows, kMaxTaskRows);
      const int64_t step = even_block(rows, largest, kBlockRows);
      for (int32_t h = 0; h < a.num_heads; ++h)
        for (int64_t begin = 0; begin < rows; begin += step) list.push_back({b, h, begin, std::min(begin + step, rows)});
    }
    return list;
  }

  void run(const Task& task, Scratch<Op>& s) const {
    const Span queries = query_span(task.sequence), keys = key_span(task.sequence);
    const int64_t first = queries.begin + task.begin, rows = task.end - task.begin, h = task.head;
    T* out = static_cast<T*>(a.out) + (first * a.num_heads + h) * a.head_dim;
    float* lse = a.lse + h * a.total_q + first;
    const float* weight = a.key_weight ? a.key_weight + keys.begin : nullptr;
    const Keys used = weighted_keys(weight, keys.length(), s.index);
    if (used.count == 0) return write_empty(out, lse, rows);

    const Rows<T> q{static_cast<const T*>(a.q) + h * a.q_stride_head + first * a.q_stride_token, a.q_stride_token, nullptr};
    const Rows<T> k{static_cast<const T*>(a.k) + h * a.k_stride_head + keys.begin * a.k_stride_token, a.k_stride_token, used.index};
    const Rows<T> v{static_cast<const T*>(a.v) + h * a.v_stride_head + keys.begin * a.v_stride_token, a.v_stride_token, used.index};
    if (weight)
      ForwardTask<Op, true>(s, a.head_dim, a.softmax_scale).run(q, k, v, weight, rows, used.count);
    else
      ForwardTask<Op, false>(s, a.head_dim, a.softmax_scale).run(q, k, v, weight, rows, used.count);
    for (int64_t r = 0; r < rows; ++r) {
      write_scaled(out + r * a.num_heads * a.head_dim, s.outputs + r * padded_dim_, 1.0f / s.row_sum[r], a.head_dim);
      lse[r] = s.row_max[r] * kLn2 + std::log(s.row_sum[r]);
    }
  }

  void write_empty(T* out, float* lse, int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r) {
      std::memset(out + r * a.num_heads * a.head_dim, 0, a.head_dim * sizeof(T));
      lse[r] = -__builtin_inff();
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
