// Attention inside each packed sequence, forward (eq. 10 of MSViT, arXiv 2307.02321).
//
//   out_i = sum_j w_j exp(s_ij) v_j / sum_p w_p exp(s_ip),   s_ij = softmax_scale * q_i . k_j
//   lse_i = log sum_j w_j exp(s_ij)
//
// A work item is all queries of one head of one sequence, or a part of them; a block computes it with a running softmax
// as in FlashAttention-2 (arXiv 2307.08691). Each warp holds 16 or 32 queries and their sums in registers and passes
// over the keys in chunks of 32 or 64. The keys and values of a short sequence stay in shared memory for all queries of
// the item: they are read once, the first chunk is used while the others arrive, and after the first pass the warps
// need no barrier. Those of a long sequence stream through a ring of chunks, once per pass.
//
// Weights enter as log2(w), added to the scores: a key of weight 0 scores -inf, which keeps it out of the maximum and
// of the sums. Products are 16-bit, sums fp32, each sum in one order and without atomics: same inputs, same bits.
#include "dispatch.cuh"
#include "launch.cuh"
#include "row_stream.cuh"
#include "sequences.cuh"
#include "tiles.cuh"
#include "varlen_attention.h"

namespace msvit::cuda {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kFewerBlocks = 1;  // ptxas needs more registers for these architectures
#else
constexpr int kFewerBlocks = 0;
#endif
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
// The most shared memory that resident keys and values may take, so that three blocks fit a multiprocessor of 228 KB.
constexpr int kMostResidentBytes = 76 * 1024;

struct ForwardParams {
  AttentionForward call;
  int parts;          // work items of a sequence and head
  int rows_per_part;  // queries of a work item
};

// Constants of one instantiation of the kernel. FRAGMENTS: fragments of 16 queries per warp. CHUNK: keys per chunk.
// RESIDENT: shared memory holds the keys and values of the whole sequence; otherwise a ring of chunks.
template <class T_, int D_, int FRAGMENTS_, int CHUNK_, bool RESIDENT_, bool WEIGHTED_>
struct ForwardTraits {
  using T = T_;
  static constexpr int D = D_, FRAGMENTS = FRAGMENTS_, CHUNK = CHUNK_;
  static constexpr bool RESIDENT = RESIDENT_, WEIGHTED = WEIGHTED_;
  // Blocks per multiprocessor: as many as leave a thread the registers that it needs.
  static constexpr int kMinBlocks = (D == 32 ? 5 : D == 64 ? 4 : 3) - FRAGMENTS - kFewerBlocks;
  static constexpr int kPassRows = kWarps * kRowsPerFragment * FRAGMENTS;

  using Numbers = std::conditional_t<WEIGHTED, KeyBias, NoNumbers>;
  using Keys = RowStream<D, CHUNK, kThreads, RESIDENT, Numbers>;
};

// 16 * FRAGMENTS queries of a warp with the state of their running softmax: maximum, sum, and weighted sum of values.
template <class Traits>
class Queries {
  using T = typename Traits::T;
  static constexpr int D = Traits::D, FRAGMENTS = Traits::FRAGMENTS, CHUNK = Traits::CHUNK;

 public:
  // Loads the first `valid` of the rows; the others become zeros.
  __device__ __forceinline__ Queries(const uint16_t* rows, int64_t stride, int valid, int head_dim, float scale)
      : scale_(fabsf(scale) * kLog2E) {
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f) {
      load_operand<D>(q_[f], rows + f * kRowsPerFragment * stride, stride, valid - f * kRowsPerFragment, head_dim);
      // With the sign of the scale in the queries, the largest product is the largest score.
      const uint32_t sign = scale < 0 ? 0x80008000u : 0;
#pragma unroll
      for (int step = 0; step < D / 16; ++step)
        for (int i = 0; i < 4; ++i) q_[f][step][i] ^= sign;
      for (int half = 0; half < 2; ++half) max_[f][half] = -INFINITY, sum_[f][half] = 0;
      for (int block = 0; block < D / 8; ++block)
        for (int i = 0; i < 4; ++i) acc_[f][block][i] = 0;
    }
  }

  // Adds the first `valid` keys of a chunk. PLAIN: the whole chunk is valid and there are no weights. Otherwise `bias`
  // holds log2 of the weights, or is null.
  template <bool PLAIN>
  __device__ __forceinline__ void attend(uint32_t k, uint32_t v, const float* bias, int valid) {
    float s[FRAGMENTS][CHUNK / 8][4];
#pragma unroll
    for (int group = 0; group < CHUNK / 16; ++group) {
      for (int f = 0; f < FRAGMENTS; ++f)
        for (int i = 0; i < 4; ++i) s[f][2 * group][i] = s[f][2 * group + 1][i] = 0;
      if (!PLAIN && 16 * group >= valid) continue;
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        uint32_t b[4];
        load_b_from_columns<D>(b, k, 16 * group, step);
#pragma unroll
        for (int f = 0; f < FRAGMENTS; ++f) {
          mma<T>(s[f][2 * group], q_[f][step], b[0], b[1]);
          mma<T>(s[f][2 * group + 1], q_[f][step], b[2], b[3]);
        }
      }
    }
    if constexpr (!PLAIN) add_bias(s, bias, valid);
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f) soften<PLAIN>(s[f], f);
#pragma unroll
    for (int group = 0; group < CHUNK / 16; ++group) {
      if (!PLAIN && 16 * group >= valid) continue;
      uint32_t p[FRAGMENTS][4];
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) pack_operand<T>(p[f], s[f][2 * group], s[f][2 * group + 1]);
      add_product<T, D>(acc_, p, v, 16 * group);
    }
  }

  // Divides by the sums and stores `out` and `lse` of the first `valid` queries.
  __device__ __forceinline__ void store(uint16_t* out, int64_t stride, float* lse, int valid, int head_dim) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f) {
      const int rows = valid - f * kRowsPerFragment;
      float factor[2];
      for (int half = 0; half < 2; ++half) {
        const float sum = quad_sum(sum_[f][half]);
        factor[half] = sum == 0 ? 0 : 1 / sum;  // NaN in, NaN out: the maximum ignores NaN, the sum does not
        const int row = lane / 4 + 8 * half;
        if (lane % 4 == 0 && row < rows)
          lse[f * kRowsPerFragment + row] = sum == 0 ? -INFINITY : (max_[f][half] + log2f(sum)) * kLn2;
      }
      store_fragment<T, D>(out + f * kRowsPerFragment * stride, stride, acc_[f], factor, rows, head_dim);
    }
  }

 private:
  // Turns products into scores in units of log2; -inf for keys from `valid` on.
  __device__ __forceinline__ void add_bias(float (&s)[FRAGMENTS][CHUNK / 8][4], const float* bias, int valid) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int block = 0; block < CHUNK / 8; ++block) {
      const int key = 8 * block + 2 * (lane % 4);
      float even = key < valid ? 0 : -INFINITY, odd = key + 1 < valid ? 0 : -INFINITY;
      if (bias != nullptr) {
        const float2 pair = *reinterpret_cast<const float2*>(bias + key);
        even = pair.x, odd = pair.y;
      }
#pragma unroll
      for (int f = 0; f < FRAGMENTS; ++f) {
        s[f][block][0] = s[f][block][0] * scale_ + even;
        s[f][block][1] = s[f][block][1] * scale_ + odd;
        s[f][block][2] = s[f][block][2] * scale_ + even;
        s[f][block][3] = s[f][block][3] * scale_ + odd;
      }
    }
  }

  // Turns scores (PLAIN: products) into exp2(score - maximum), and rescales the sums so far to the new maximum.
  template <bool PLAIN>
  __device__ __forceinline__ void soften(float (&s)[CHUNK / 8][4], int f) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = -INFINITY;
#pragma unroll
      for (int block = 0; block < CHUNK / 8; ++block)
        largest = fmaxf(largest, fmaxf(s[block][2 * half], s[block][2 * half + 1]));
      largest = quad_max(largest);
      if constexpr (PLAIN) largest *= scale_;
      largest = fmaxf(largest, max_[f][half]);
      const float base = largest == -INFINITY ? 0 : largest;
      const float correction = exp2_approx(max_[f][half] - base);
      max_[f][half] = largest;
      float sum = 0;
#pragma unroll
      for (int block = 0; block < CHUNK / 8; ++block) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          s[block][i] = exp2_approx(PLAIN ? s[block][i] * scale_ - base : s[block][i] - base);
          sum += s[block][i];
        }
      }
      sum_[f][half] = sum_[f][half] * correction + sum;
#pragma unroll
      for (int block = 0; block < D / 8; ++block) {
        acc_[f][block][2 * half] *= correction;
        acc_[f][block][2 * half + 1] *= correction;
      }
    }
  }

  uint32_t q_[FRAGMENTS][D / 16][4];
  float acc_[FRAGMENTS][D / 8][4];
  float max_[FRAGMENTS][2], sum_[FRAGMENTS][2];
  float scale_;
};

// out and lse. A block takes the items of its schedule, a part of the queries of one head of one sequence each.
template <class Traits>
__global__ __launch_bounds__(kThreads,
                             Traits::kMinBlocks) void forward_kernel(const __grid_constant__ ForwardParams params) {
  constexpr int CHUNK = Traits::CHUNK, kWarpRows = kRowsPerFragment * Traits::FRAGMENTS;
  constexpr bool WEIGHTED = Traits::WEIGHTED;
  MSVIT_SHARED_MEMORY(memory);
  const Attention& in = params.call.in;
  const Schedule schedule(memory + Traits::Keys::shared_bytes(in.max_seqlen_k), in.cu_seqlens_q, in.batch,
                          in.max_seqlen_q, in.num_heads, params.parts);
  typename Traits::Keys keys(memory, in.max_seqlen_k, in.head_dim);
  const int warp = threadIdx.x / kWarpSize;

  WorkItem item;
  for (int round = 0; schedule.item(round, item); ++round) {
    const Sequence queries = read_sequence(in.cu_seqlens_q, item.sequence, in.total_q, in.max_seqlen_q);
    const Sequence sequence = read_sequence(in.cu_seqlens_k, item.sequence, in.total_k, in.max_seqlen_k);
    const int begin = item.part * params.rows_per_part;
    const int end = min(begin + params.rows_per_part, queries.length);
    if (begin >= end) continue;
    if (round > 0) __syncthreads();  // all warps have finished with the keys of the item before
    typename Traits::Numbers numbers;
    if constexpr (WEIGHTED) numbers = {in.key_weight + sequence.start, sequence.length};
    keys.start(in.k, in.v, sequence, item.head, numbers);

    for (int pass = begin; pass < end; pass += Traits::kPassRows) {
      const int first = pass + warp * kWarpRows;
      const int valid = end - first;  // <= 0 for a warp without queries, which only takes part in the barriers
      const int64_t row = queries.start + first;
      Queries<Traits> tile(rows_of(in.q, row, item.head), in.q.token_stride, valid, in.head_dim, in.softmax_scale);
      for (int chunk = 0; chunk < keys.num_chunks(); ++chunk) {
        if (pass == begin) keys.arrive(chunk);
        if (valid <= 0) continue;
        const int remaining = keys.remaining(chunk);
        if (!WEIGHTED && remaining >= CHUNK) {
          tile.template attend<true>(keys.a(chunk), keys.b(chunk), nullptr, CHUNK);
        } else {
          tile.template attend<false>(keys.a(chunk), keys.b(chunk), WEIGHTED ? keys.numbers(0, chunk) : nullptr,
                                      remaining);
        }
      }
      if (valid > 0) {
        const int64_t stride = static_cast<int64_t>(in.num_heads) * in.head_dim;
        tile.store(params.call.out + row * stride + item.head * in.head_dim, stride,
                   params.call.lse + item.head * in.total_q + row, valid, in.head_dim);
      }
    }
  }
}

// Divides the queries into work items and starts as many blocks as run at the same time, or one per item.
template <class Traits>
void launch_forward(const AttentionForward& call, int device, uintptr_t stream) {
  const Attention& in = call.in;
  const auto kernel = forward_kernel<Traits>;
  const int shared_bytes = static_cast<int>(Traits::Keys::shared_bytes(in.max_seqlen_k)) + schedule_bytes(in.batch);
  const int64_t slots =
      static_cast<int64_t>(resident_blocks(kernel, device, kThreads, shared_bytes)) * num_multiprocessors(device);
  const int64_t pairs = static_cast<int64_t>(in.batch) * in.num_heads;
  const int passes = (in.max_seqlen_q + Traits::kPassRows - 1) / Traits::kPassRows;
  ForwardParams params{call, passes, 0};
  // With resident keys a block takes all queries of a sequence and head, unless that leaves blocks without work.
  if (Traits::RESIDENT) params.parts = static_cast<int>(std::min<int64_t>(passes, (slots + pairs - 1) / pairs));
  params.rows_per_part = (passes + params.parts - 1) / params.parts * Traits::kPassRows;
  params.parts = (in.max_seqlen_q + params.rows_per_part - 1) / params.rows_per_part;
  launch(kernel, static_cast<int>(std::min(slots, pairs * params.parts)), kThreads, shared_bytes, stream, params);
}

// Keeps keys and values in shared memory if they take at most kMostResidentBytes.
template <class T, int D, bool WEIGHTED>
void launch_forward(const AttentionForward& call, int device, uintptr_t stream) {
  using Resident = ForwardTraits<T, D, 1, 64, true, WEIGHTED>;
  using Ring = ForwardTraits<T, D, D <= 64 ? 2 : 1, 32, false, WEIGHTED>;
  if (Resident::Keys::shared_bytes(call.in.max_seqlen_k) <= kMostResidentBytes) {
    launch_forward<Resident>(call, device, stream);
  } else {
    launch_forward<Ring>(call, device, stream);
  }
}

}  // namespace

void varlen_attention_fwd(const AttentionForward& asked, bool is_bf16, int device, uintptr_t stream) {
  const AttentionForward call = with_tight_bounds(asked);
  const Attention& in = call.in;
  if (in.total_q == 0 || in.batch == 0 || in.num_heads == 0 || in.max_seqlen_q == 0) return;
  const DeviceGuard guard(device);
  dispatch(is_bf16, in.head_dim, [&](auto element, auto width) {
    using T = decltype(element);
    constexpr int D = decltype(width)::value;
    in.key_weight != nullptr ? launch_forward<T, D, true>(call, device, stream)
                             : launch_forward<T, D, false>(call, device, stream);
  });
}

}  // namespace msvit::cuda
