// Backward of variable-length attention on the CPU (derivation: docs/operators.md).
//
//   P~_ij = exp(s_ij - lse_i), 0 if lse_i = -inf;   p_ij = w_j P~_ij, exactly 0 if w_j = 0 (P~ may overflow)
//   delta_i = dout_i . out_i - dlse_i;   t_ij = P~_ij (dout_i . v_j - delta_i);   ds_ij = w_j t_ij
//   dq_i = scale sum_j ds_ij k_j;   dk_j = scale sum_i ds_ij q_i
//   dv_j = sum_i p_ij dout_i;       dw_j = sum_heads sum_i t_ij
//
// One task is one (sequence, head). For each block of at most kMaxKeys keys it packs K^T, V^T and K once. Then for each
// kBlockRows query rows it computes S = Q K^T and dP = dO V^T (lanes along keys), P and dS in place, dQ += dS K,
// dV += P^T dO and dK += dS^T Q (lanes along head_dim). k and v are read once per task, q and dout once per key block,
// out and dout once more for delta. If there are too few pairs (sequence, head) for the threads, a pair becomes tasks
// that compute dQ of a range of queries and tasks that compute dK, dV and dw of a range of keys: S and dP are computed
// twice, and the bits stay the same. Keys of weight 0 take part in S and dP alone, and only if dw is wanted.
//
// P~ is computed times 2^e, with the exponent e of the weight (exponent_of): this is at most 1 for a key with weight.
// For a key of weight 0, e follows from other weights, and the product is limited to 2^127, so that a summand of dw
// with a factor of 0 is 0. dw is divided by 2^e last.
//
// Accumulation is fp32. With AVX512-BF16, bf16 inputs are multiplied as pairs, and P and dS are rounded to bf16 first.
// Sums over queries run in the order of the query blocks, sums over keys in the order of the key blocks, and dw over
// heads in the order of the heads: bits do not depend on the number of threads.
#include <cmath>

#include "varlen_attention_bwd_task.h"

namespace msvit {
namespace MSVIT_ISA {

namespace {

enum class Want { all, dq, dkv };

struct BackwardRange {
  Task task;  // a range of queries, or of keys if `want` is dkv
  Want want;
};

template <class Op, class T>
class Backward {
 public:
  explicit Backward(const VarlenAttentionBwdArgs& args) : a(args), padded_dim_(round_up(a.head_dim, kLanes)) {}

  void operator()() const {
    const double work = multiply_adds(a) * 2.5;
    const int threads = work < kSerialWork ? 1 : std::max(1, a.num_threads);
    int64_t rows = 0, keys = 0;
    for (int64_t b = 0; b < a.batch; ++b) {
      rows = std::max(rows, query_span(b).length());
      keys = std::max(keys, key_span(b).length());
    }
    Arena sizes(nullptr);
    BackwardScratch<Op>(sizes, padded_dim_, rows, keys);
    const size_t bytes = round_up(sizes.used(), 4096);
    static thread_local Workspace workspace;
    char* memory = workspace.reserve(bytes * threads + a.num_heads * a.total_k * sizeof(float));
    float* dw = reinterpret_cast<float*>(memory + bytes * threads);  // [num_heads, total_k]
    for_each_task(tasks(threads, work), a.num_heads, threads, memory, bytes,
                  [&](const BackwardRange& range, const BackwardRange* next, char* scratch) {
                    Arena arena(scratch);
                    BackwardScratch<Op> s(arena, padded_dim_, rows, keys);
                    run(range, next, s, dw);
                  });
    if (a.dweight) sum_heads(dw);
  }

 private:
  Span query_span(int64_t b) const { return sequence_span(a.cu_seqlens_q, b, a.total_q); }
  Span key_span(int64_t b) const { return sequence_span(a.cu_seqlens_k, b, a.total_k); }

  // Whether to split: that costs seven products instead of five, so it has to save more in idle threads.
  bool few_tasks(int threads, double work, double largest) const {
    const int64_t items = std::max<int64_t>(1, a.batch * a.num_heads), rounds = ceil_div(items, threads);
    return threads > 1 && std::max(largest, work * rounds / items) > 1.5 * work / threads;
  }

  std::vector<BackwardRange> tasks(int threads, double work) const {
    const std::vector<int32_t> order = longest_first(a);
    const auto cost = [&](int32_t b) { return 5.0 * query_span(b).length() * key_span(b).length() * a.head_dim; };
    const bool split = !order.empty() && few_tasks(threads, work, cost(order[0]));
    const double target = split ? work / (threads * kTasksPerThread) : work;
    std::vector<BackwardRange> list;
    for (const int32_t b : order) {
      const int64_t rows = query_span(b).length(), keys = key_span(b).length();
      const int64_t pieces = static_cast<int64_t>(cost(b) / std::max(target, 1.0)) + 1;
      for (int32_t h = 0; h < a.num_heads; ++h) {
        if (pieces == 1) {
          list.push_back({{b, h, 0, rows}, Want::all});
          continue;
        }
        add_pieces(list, b, h, rows, pieces, kBlockRows, Want::dq);
        add_pieces(list, b, h, keys, pieces, kTileCols, Want::dkv);
      }
    }
    return list;
  }

  static void add_pieces(std::vector<BackwardRange>& list, int32_t b, int32_t h, int64_t n, int64_t pieces,
                         int64_t multiple, Want want) {
    const int64_t step = round_up(ceil_div(n, pieces), multiple);
    for (int64_t begin = 0; begin < n; begin += step) list.push_back({{b, h, begin, std::min(begin + step, n)}, want});
  }

  void run(const BackwardRange& range, const BackwardRange* next, BackwardScratch<Op>& s, float* dw) const {
    const Span queries = query_span(range.task.sequence), keys = key_span(range.task.sequence);
    const int64_t h = range.task.head;
    const bool want_dq = range.want != Want::dkv, want_dkv = range.want != Want::dq;
    const int64_t row_begin = want_dq ? range.task.begin : 0, row_end = want_dq ? range.task.end : queries.length();
    const int64_t key_begin = want_dq ? 0 : range.task.begin, key_end = want_dq ? keys.length() : range.task.end;
    const int64_t first_row = queries.begin + row_begin, first_key = keys.begin + key_begin;
    const float* weight = a.key_weight ? a.key_weight + first_key : nullptr;

    BackwardOperands<T> x;
    x.rows = row_end - row_begin;
    x.weight = weight;
    // Of the whole sequence: the bits do not depend on how it is divided into tasks.
    if (weight) x.weights = weight_range(a.key_weight + keys.begin, keys.length());
    const int32_t* order = order_keys(weight, key_end - key_begin, s.index, x.active);
    x.keys = want_dkv && a.dweight ? key_end - key_begin : x.active;
    x.q = {row(a.q, first_row, h, a.q_stride_token, a.q_stride_head), a.q_stride_token, nullptr};
    x.dout = {row(a.dout, first_row, h, a.dout_stride_token, a.dout_stride_head), a.dout_stride_token, nullptr};
    x.k = {row(a.k, first_key, h, a.k_stride_token, a.k_stride_head), a.k_stride_token, order};
    x.v = {row(a.v, first_key, h, a.v_stride_token, a.v_stride_head), a.v_stride_token, order};
    prepare_rows(x, first_row, h, s);
    Prefetcher ahead = next ? rows_ahead(*next) : Prefetcher(0);
    const int64_t key_vecs = round_up(x.keys, kLanes) / kLanes, vecs = padded_dim_ / kLanes;
    ahead.spread_over(2 * gemm_tiles(x.rows, key_vecs) + gemm_tiles(x.rows, vecs) + 1);
    const auto differentiate = [&](auto task) {
      // Not of x.keys: dq needs the same blocks whether or not this task computes dw.
      const int64_t block = even_block(a.dweight ? key_end - key_begin : x.active, kMaxKeys, kLanes);
      for (int64_t begin = 0; begin < x.keys; begin += block) {
        const int64_t count = std::min(block, x.keys - begin);
        task.run(begin, count, ahead);
        if (want_dkv) write_keys(s, x, first_key, begin, count, h, dw);
      }
    };
    if (weight)
      differentiate(BackwardTask<Op, T, true>(s, x, a.head_dim, a.softmax_scale, want_dq, want_dkv));
    else
      differentiate(BackwardTask<Op, T, false>(s, x, a.head_dim, a.softmax_scale, want_dq, want_dkv));
    if (want_dkv)
      for (int64_t j = x.keys; j < key_end - key_begin; ++j) write_key(s, first_key + order[j], -1, h);
    if (want_dq) write_dq(s, first_row, x.rows, h, x.active > 0);
  }

  Prefetcher rows_ahead(const BackwardRange& range) const {
    const int64_t b = range.task.sequence, h = range.task.head, bytes = sizeof(T);
    const Span queries = query_span(b), keys = key_span(b);
    const int64_t n = std::min(keys.length(), kMaxKeys), m = std::min(queries.length(), kMaxKeys);
    Prefetcher ahead(a.head_dim * bytes);
    ahead.add(row(a.k, keys.begin, h, a.k_stride_token, a.k_stride_head), a.k_stride_token * bytes, n);
    ahead.add(row(a.v, keys.begin, h, a.v_stride_token, a.v_stride_head), a.v_stride_token * bytes, n);
    ahead.add(row(a.q, queries.begin, h, a.q_stride_token, a.q_stride_head), a.q_stride_token * bytes, m);
    ahead.add(row(a.dout, queries.begin, h, a.dout_stride_token, a.dout_stride_head), a.dout_stride_token * bytes, m);
    ahead.add(row(a.out, queries.begin, h, a.num_heads * a.head_dim, a.head_dim), a.num_heads * a.head_dim * bytes, m);
    return ahead;
  }

  static const T* row(const void* base, int64_t row, int64_t head, int64_t stride_token, int64_t stride_head) {
    return static_cast<const T*>(base) + row * stride_token + head * stride_head;
  }

  // Indices of the keys, those with weight first; null if all have weight.
  static const int32_t* order_keys(const float* weight, int64_t n, int32_t* index, int64_t& active) {
    active = weighted_keys(weight, n, index).count;
    if (active == n) return nullptr;
    int64_t count = active;
    for (int64_t j = 0; j < n; ++j)
      if (weight[j] <= 0.0f) index[count++] = static_cast<int32_t>(j);
    return index;
  }

  // lse in units of log2, above the exponent of the greatest weight, and delta. If a row has no key, its lse is
  // infinite, which makes P~ 0.
  void prepare_rows(const BackwardOperands<T>& x, int64_t first_row, int64_t h, BackwardScratch<Op>& s) const {
    for (int64_t r = 0; r < x.rows; ++r) {
      const int64_t i = first_row + r;
      const float lse = a.lse[h * a.total_q + i];
      const bool empty = lse == -__builtin_inff();
      s.lse[r] = Log2Factor(lse, -x.weights.greatest);
      if (empty) s.lse[r].high = __builtin_inff(), s.lse[r].low = 0.0f;
      const float dlse = a.dlse ? a.dlse[h * a.total_q + i] : 0.0f;
      s.delta[r] =
          empty ? 0.0f : dot(x.dout[r], static_cast<const T*>(a.out) + (i * a.num_heads + h) * a.head_dim) - dlse;
    }
  }

  float dot(const T* x, const T* y) const {
    VecF sum = {};
    int64_t d = 0;
    for (; d + kLanes <= a.head_dim; d += kLanes) sum += load_floats(x + d) * load_floats(y + d);
    float rest = 0.0f;
    for (; d < a.head_dim; ++d) rest += to_float(x[d]) * to_float(y[d]);
    return reduce_add(sum) + rest;
  }

  void write_keys(const BackwardScratch<Op>& s, const BackwardOperands<T>& x, int64_t first_key, int64_t begin,
                  int64_t count, int64_t h, float* dw) const {
    for (int64_t j = 0; j < count; ++j) {
      const int64_t key = first_key + (x.k.index ? x.k.index[begin + j] : begin + j);
      write_key(s, key, begin + j < x.active && x.rows > 0 ? j : -1, h);
      if (!a.dweight) continue;
      const float unit = x.weight ? power_of_2(-exponent_of(a.key_weight[key], x.weights)) : 1.0f;
      dw[h * a.total_k + key] = x.rows > 0 ? s.dw[j] * unit : 0.0f;
    }
  }

  // Writes dk and dv of a key: row j of the scratch memory, or 0 if j is -1.
  void write_key(const BackwardScratch<Op>& s, int64_t key, int64_t j, int64_t h) const {
    const int64_t offset = (key * a.num_heads + h) * a.head_dim;
    T *dk = static_cast<T*>(a.dk) + offset, *dv = static_cast<T*>(a.dv) + offset;
    if (j < 0) {
      std::memset(dk, 0, a.head_dim * sizeof(T));
      std::memset(dv, 0, a.head_dim * sizeof(T));
    } else {
      write_scaled(dk, s.dk + j * padded_dim_, a.softmax_scale, a.head_dim);
      write_scaled(dv, s.dv + j * padded_dim_, 1.0f, a.head_dim);
    }
  }

  void write_dq(const BackwardScratch<Op>& s, int64_t first_row, int64_t rows, int64_t h, bool has_keys) const {
    for (int64_t r = 0; r < rows; ++r) {
      T* dq = static_cast<T*>(a.dq) + ((first_row + r) * a.num_heads + h) * a.head_dim;
      if (has_keys)
        write_scaled(dq, s.dq + r * padded_dim_, a.softmax_scale, a.head_dim);
      else
        std::memset(dq, 0, a.head_dim * sizeof(T));
    }
  }

  void sum_heads(const float* dw) const {
    for (int64_t j = 0; j < a.total_k; ++j) {
      float sum = 0.0f;
      for (int64_t h = 0; h < a.num_heads; ++h) sum += dw[h * a.total_k + j];
      a.dweight[j] = sum;
    }
  }

  const VarlenAttentionBwdArgs& a;
  const int64_t padded_dim_;
};

}  // namespace

void varlen_attention_bwd(const VarlenAttentionBwdArgs& a) {
  if (!a.is_bf16) return Backward<F32, float>(a)();
#ifdef __AVX512BF16__
  return Backward<Bf16Pairs, Bf16>(a)();
#else
  return Backward<F32, Bf16>(a)();
#endif
}

}  // namespace MSVIT_ISA
}  // namespace msvit
