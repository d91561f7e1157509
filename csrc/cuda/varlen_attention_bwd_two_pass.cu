// Attention inside each packed sequence, backward, any length (derived in docs/operators.md): two kernels.
//
//   P~_ij = exp(s_ij - lse_i),  p_ij = w_j P~_ij,  delta_i = dout_i . out_i - dlse_i,  g_ij = dout_i . v_j - delta_i
//   dv_j = sum_i p_ij dout_i,  ds_ij = p_ij g_ij,  dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i
//   dweight_j = sum_heads sum_i P~_ij g_ij
//
// As in FlashAttention-2 (arXiv 2307.08691), a block of the first kernel computes dq and delta of 64 queries of one
// head of one sequence in one pass over the keys and values; a block of the second computes dk, dv and dweight of 64
// keys in one pass over the queries and output gradients, and reads delta. Both compute the scores again from lse.
// Products are 16-bit, sums fp32, each sum in one order and without atomics: same inputs, same bits.
#include <type_traits>

#include "dispatch.cuh"
#include "launch.cuh"
#include "row_stream.cuh"
#include "sequences.cuh"
#include "tiles.cuh"
#include "varlen_attention_bwd.h"

namespace msvit::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kRows = kWarps * kRowsPerFragment;  // rows of a work item
constexpr int kChunk = 32;                        // rows of a chunk of the stream

struct BackwardParams {
  AttentionBackward call;
  int parts;  // work items of a sequence and head
};

// ---- dq, delta

// Scalar product of rows lane / 4 + 8 half of two operands [16, D], in fp32.
template <class T, int D>
__device__ __forceinline__ float dot_rows(const uint32_t (&x)[D / 16][4], const uint32_t (&y)[D / 16][4], int half) {
  float sum = 0;
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
#pragma unroll
    for (int i = half; i < 4; i += 2) {
      sum += dot<T>(x[step][i], y[step][i]);
    }
  }
  return quad_sum(sum);
}

// dq_i = scale sum_j ds_ij k_j and delta_i. A work item is 64 queries of one head of one sequence, 16 a warp: q, dout
// and dq are in registers; keys, values and weights stream through shared memory.
template <class T, int D>
__global__ __launch_bounds__(kThreads, D <= 64 ? 3 : 2) void dq_kernel(const __grid_constant__ BackwardParams params) {
  using Keys = RowStream<D, kChunk, kThreads, false, KeyBias>;
  MSVIT_SHARED_MEMORY(memory);
  const AttentionBackward& call = params.call;
  const Attention& in = call.in;
  const Schedule schedule(memory + Keys::shared_bytes(0), in.cu_seqlens_q, in.batch, in.max_seqlen_q, in.num_heads,
                          params.parts);
  Keys keys(memory, 0, in.head_dim);
  const int lane = threadIdx.x % kWarpSize;
  const float scale = in.softmax_scale * kLog2E;

  WorkItem item;
  for (int round = 0; schedule.item(round, item); ++round) {
    const Sequence queries = read_sequence(in.cu_seqlens_q, item.sequence, in.total_q, in.max_seqlen_q);
    if (item.part * kRows >= queries.length) continue;
    const Sequence sequence = read_sequence(in.cu_seqlens_k, item.sequence, in.total_k, in.max_seqlen_k);
    __syncthreads();  // all warps have finished with the keys of the item before
    const float* weight = in.key_weight == nullptr ? nullptr : in.key_weight + sequence.start;
    keys.start(in.k, in.v, sequence, item.head, {weight, sequence.length});

    const int first = item.part * kRows + threadIdx.x / kWarpSize * kRowsPerFragment;
    const int valid = queries.length - first;  // <= 0 for a warp without queries
    const int64_t row = queries.start + first;
    const int64_t stride = static_cast<int64_t>(in.num_heads) * in.head_dim;
    const int64_t statistics = item.head * in.total_q + row;
    uint32_t q[D / 16][4], dout[D / 16][4];
    float lse[2], delta[2];
    load_operand<D>(dout, rows_of(call.dout, row, item.head), call.dout.token_stride, valid, in.head_dim);
    load_operand<D>(q, call.out + row * stride + item.head * in.head_dim, stride, valid, in.head_dim);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = lane / 4 + 8 * half;
      lse[half] = log2_lse(call.lse + statistics + own, own < valid);
      delta[half] = dot_rows<T, D>(dout, q, half);
      if (own < valid && call.dlse != nullptr) delta[half] -= __ldg(call.dlse + statistics + own);
      if (own < valid && lane % 4 == 0) call.delta[statistics + own] = delta[half];
    }
    load_operand<D>(q, rows_of(in.q, row, item.head), in.q.token_stride, valid, in.head_dim);

    float dq[1][D / 8][4] = {};
    for (int chunk = 0; chunk < keys.num_chunks(); ++chunk) {
      keys.arrive(chunk);
      const uint32_t k = keys.a(chunk), v = keys.b(chunk);
      const float* bias = keys.numbers(0, chunk);
#pragma unroll
      for (int group = 0; group < kChunk / 16; ++group) {
        if (valid <= 0 || 16 * group >= keys.remaining(chunk)) continue;
        float s[2][4] = {}, dp[2][4] = {};
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
          uint32_t b[4];
          load_b_from_columns<D>(b, k, 16 * group, step);
          mma<T>(s[0], q[step], b[0], b[1]);
          mma<T>(s[1], q[step], b[2], b[3]);
          load_b_from_columns<D>(b, v, 16 * group, step);
          mma<T>(dp[0], dout[step], b[0], b[1]);
          mma<T>(dp[1], dout[step], b[2], b[3]);
        }
#pragma unroll
        for (int block = 0; block < 2; ++block) {
          const float2 log_weight = *reinterpret_cast<const float2*>(bias + 16 * group + 8 * block + 2 * (lane % 4));
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float p = exp2_approx(s[block][i] * scale - lse[i / 2] + (i % 2 ? log_weight.y : log_weight.x));
            s[block][i] = p * (dp[block][i] - delta[i / 2]);
          }
        }
        uint32_t ds[1][4];
        pack_operand<T>(ds[0], s[0], s[1]);
        add_product<T, D>(dq, ds, k, 16 * group);
      }
    }
    store_fragment<T, D>(call.dq + row * stride + item.head * in.head_dim, stride, dq[0],
                         {in.softmax_scale, in.softmax_scale}, valid, in.head_dim);
  }
}

// ---- dk, dv, dweight

// Numbers of a stream of queries and output gradients: lse in units of log2, and delta.
struct QueryStatistics {
  static constexpr int NUMBERS = 2;
  static constexpr bool CLEARS = false;
  const float* lse;  // of the first query of the sequence
  const float* delta;
  int length;

  __device__ __forceinline__ float value(int which, int row) const {
    if (which == 0) return log2_lse(lse + row, row < length);
    return row < length ? delta[row] : 0;
  }
};

// Operands a of 16 rows of a tile, for one warp: kept in registers, or loaded from shared memory at each use.
template <int D, bool IN_REGISTERS>
class Operand {
 public:
  __device__ __forceinline__ Operand(uint32_t tile, int first_row) : tile_(tile), first_row_(first_row) {
    if constexpr (IN_REGISTERS) {
#pragma unroll
      for (int step = 0; step < D / 16; ++step) load_a_from_rows<D>(held_[step], tile, first_row, step);
    }
  }
  __device__ __forceinline__ void get(uint32_t (&a)[4], int step) const {
    if constexpr (IN_REGISTERS) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = held_[step][i];
    } else {
      load_a_from_rows<D>(a, tile_, first_row_, step);
    }
  }

 private:
  uint32_t held_[IN_REGISTERS ? D / 16 : 1][4];
  uint32_t tile_;
  int first_row_;
};

// dk_j = scale sum_i ds_ij q_i, dv_j = sum_i p_ij dout_i and, per head, dweight_j = sum_i P~_ij g_ij. A work item is 64
// keys of one head of one sequence, 16 a warp: dk and dv are in registers; queries, output gradients, lse and delta
// stream through shared memory. P and dS are computed transposed, keys by queries: the accumulators of one product are
// then operand a of the next without leaving the registers.
template <class T, int D>
__global__ __launch_bounds__(kThreads, D == 32 ? 3 : 2) void dkv_kernel(const __grid_constant__ BackwardParams params) {
  using Queries = RowStream<D, kChunk, kThreads, false, QueryStatistics>;
  MSVIT_SHARED_MEMORY(memory);
  const AttentionBackward& call = params.call;
  const Attention& in = call.in;
  constexpr int kTileBytes = kRows * Tile<D>::kRowBytes;
  const uint32_t k_tile = shared_address(memory), v_tile = k_tile + kTileBytes;
  unsigned char* stream_memory = memory + 2 * kTileBytes;
  Queries queries(stream_memory, 0, in.head_dim);
  const Schedule schedule(stream_memory + Queries::shared_bytes(0), in.cu_seqlens_k, in.batch, in.max_seqlen_k,
                          in.num_heads, params.parts);
  const int lane = threadIdx.x % kWarpSize, warp_row = threadIdx.x / kWarpSize * kRowsPerFragment;
  const float scale = in.softmax_scale * kLog2E;

  WorkItem item;
  for (int round = 0; schedule.item(round, item); ++round) {
    const Sequence keys = read_sequence(in.cu_seqlens_k, item.sequence, in.total_k, in.max_seqlen_k);
    const int first = item.part * kRows;
    if (first >= keys.length) continue;
    const Sequence sequence = read_sequence(in.cu_seqlens_q, item.sequence, in.total_q, in.max_seqlen_q);
    __syncthreads();  // all warps have finished with the item before
    const int64_t start = keys.start + first;
    copy_rows_async<D, kThreads>(k_tile, rows_of(in.k, start, item.head), in.k.token_stride, kRows, keys.length - first,
                                 in.head_dim);
    copy_rows_async<D, kThreads>(v_tile, rows_of(in.v, start, item.head), in.v.token_stride, kRows, keys.length - first,
                                 in.head_dim);
    copy_async_commit();
    const int64_t statistics = item.head * in.total_q + sequence.start;
    queries.start(in.q, call.dout, sequence, item.head,
                  {call.lse + statistics, call.delta + statistics, sequence.length});
    copy_async_wait<0>();
    __syncthreads();

    const Operand<D, D <= 64> k(k_tile, warp_row), v(v_tile, warp_row);
    const int valid = keys.length - first - warp_row;  // <= 0 for a warp without keys
    float bias[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = lane / 4 + 8 * half;
      const bool weighted = in.key_weight != nullptr && own < valid;
      bias[half] = weighted ? log2_weight(__ldg(in.key_weight + start + warp_row + own)) : own < valid ? 0 : -INFINITY;
    }
    float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {}, dweight[2] = {};
    for (int chunk = 0; chunk < queries.num_chunks(); ++chunk) {
      queries.arrive(chunk);
      const uint32_t q = queries.a(chunk), dout = queries.b(chunk);
#pragma unroll
      for (int group = 0; group < kChunk / 16; ++group) {
        if (valid <= 0 || 16 * group >= queries.remaining(chunk)) continue;
        float s[2][4] = {}, dp[2][4] = {};
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
          uint32_t a[4], b[4];
          k.get(a, step);
          load_b_from_columns<D>(b, q, 16 * group, step);
          mma<T>(s[0], a, b[0], b[1]);
          mma<T>(s[1], a, b[2], b[3]);
          v.get(a, step);
          load_b_from_columns<D>(b, dout, 16 * group, step);
          mma<T>(dp[0], a, b[0], b[1]);
          mma<T>(dp[1], a, b[2], b[3]);
        }
        // From here on s holds P and dp holds dS.
#pragma unroll
        for (int block = 0; block < 2; ++block) {
          const int column = 16 * group + 8 * block + 2 * (lane % 4);
          const float2 lse = *reinterpret_cast<const float2*>(queries.numbers(0, chunk) + column);
          const float2 delta = *reinterpret_cast<const float2*>(queries.numbers(1, chunk) + column);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float exponent = s[block][i] * scale - (i % 2 ? lse.y : lse.x);
            const float g = dp[block][i] - (i % 2 ? delta.y : delta.x);
            s[block][i] = exp2_approx(exponent + bias[i / 2]);
            dp[block][i] = s[block][i] * g;
            if (call.dweight != nullptr) dweight[i / 2] += exp2_times(exponent, g);
          }
        }
        uint32_t a[1][4];
        pack_operand<T>(a[0], s[0], s[1]);
        add_product<T, D>(dv, a, dout, 16 * group);
        pack_operand<T>(a[0], dp[0], dp[1]);
        add_product<T, D>(dk, a, q, 16 * group);
      }
    }
    const int64_t stride = static_cast<int64_t>(in.num_heads) * in.head_dim;
    const int64_t target = (start + warp_row) * stride + item.head * in.head_dim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (bias[half] != -INFINITY) continue;  // else k or v may hold NaN or infinity, which times 0 is NaN
#pragma unroll
      for (int block = 0; block < D / 8; ++block)
        for (int i = 2 * half; i < 2 * half + 2; ++i) dk[0][block][i] = dv[0][block][i] = 0;
    }
    store_fragment<T, D>(call.dk + target, stride, dk[0], {in.softmax_scale, in.softmax_scale}, valid, in.head_dim);
    store_fragment<T, D>(call.dv + target, stride, dv[0], {1.f, 1.f}, valid, in.head_dim);
    if (call.dweight != nullptr) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = quad_sum(dweight[half]);
        const int own = lane / 4 + 8 * half;
        if (lane % 4 == 0 && own < valid) call.dweight[item.head * in.total_k + start + warp_row + own] = sum;
      }
    }
  }
}

// Starts as many blocks as run at the same time, or one per work item if there are fewer items.
template <class Kernel>
void launch_persistent(Kernel kernel, const AttentionBackward& call, int max_seqlen, int64_t stream_bytes, int device,
                       uintptr_t stream) {
  const Attention& in = call.in;
  const int parts = (max_seqlen + kRows - 1) / kRows;
  const int64_t items = static_cast<int64_t>(in.batch) * in.num_heads * parts;
  if (items == 0) return;
  const int shared_bytes = static_cast<int>(stream_bytes) + schedule_bytes(in.batch);
  const int64_t slots =
      static_cast<int64_t>(resident_blocks(kernel, device, kThreads, shared_bytes)) * num_multiprocessors(device);
  launch(kernel, static_cast<int>(std::min(slots, items)), kThreads, shared_bytes, stream, BackwardParams{call, parts});
}

}  // namespace

void varlen_attention_bwd_two_pass(const AttentionBackward& call, bool is_bf16, int device, uintptr_t stream) {
  dispatch(is_bf16, call.in.head_dim, [&](auto element, auto width) {
    using T = decltype(element);
    constexpr int D = decltype(width)::value;
    const int64_t stream_bytes = RowStream<D, kChunk, kThreads, false, KeyBias>::shared_bytes(0);
    launch_persistent(dq_kernel<T, D>, call, call.in.max_seqlen_q, stream_bytes, device, stream);
    const int tile_bytes = 2 * kRows * Tile<D>::kRowBytes;
    const int64_t query_bytes = RowStream<D, kChunk, kThreads, false, QueryStatistics>::shared_bytes(0);
    launch_persistent(dkv_kernel<T, D>, call, call.in.max_seqlen_k, tile_bytes + query_bytes, device, stream);
  });
}

}  // namespace msvit::cuda
