// The backward of short sequences in one kernel: its work items, its shared memory, and what is on its way there.
#pragma once

#include "sequences.cuh"
#include "tiles.cuh"
#include "varlen_attention.h"

namespace msvit::cuda {

constexpr int kRing = 3;   // chunks
constexpr int kItems = 4;  // that are known: the one in use, two that keys may be loaded for, one being written

struct OnePassParams {
  AttentionBackward call;
  int rows;     // of a tile of queries
  int buffers;  // pairs of such tiles: 1, or 2 to load the next item ahead
};

template <class T_, int D_, int WARPS_, int FRAGMENTS_, int CHUNK_ = 32>
struct OnePassTraits {
  using T = T_;
  static constexpr int D = D_;
  static constexpr int WARPS = WARPS_;
  static constexpr int FRAGMENTS = FRAGMENTS_;  // of 16 queries a warp at most
  static constexpr int CHUNK = CHUNK_;          // keys
  static constexpr int THREADS = WARPS * kWarpSize;
  // Beside them there are dq, and sums of dk and dv.
  static constexpr bool kQueriesInRegisters = FRAGMENTS * D + 4 * D / WARPS <= 192;
  // As many as leave a thread the registers it wants.
  static constexpr int kMinBlocks = WARPS == 8 ? 1 : FRAGMENTS == 1 && D <= 64 ? 3 : 2;
};

// One head of one sequence. Sequences without queries or keys have one empty chunk, so that zeros are written.
struct alignas(16) OnePassItem {
  bool exists;
  int head;
  Sequence queries, keys;

  template <class Traits>
  __device__ int num_chunks() const {
    return max((keys.length + Traits::CHUNK - 1) / Traits::CHUNK, 1);
  }
  // Of 16 queries.
  __device__ int num_tiles() const { return (queries.length + kRowsPerFragment - 1) / kRowsPerFragment; }

  // How many neighbouring tiles a warp takes. Warps go round the four schedulers of a multiprocessor. Four warps with
  // more tiles each read keys and values from shared memory less often than eight with fewer, and keep the tensor cores
  // as busy.
  template <class Traits>
  __device__ int tiles_per_warp() const {
    const int over_four = (num_tiles() + 3) / 4;
    return over_four <= Traits::FRAGMENTS ? max(over_four, 1) : (num_tiles() + Traits::WARPS - 1) / Traits::WARPS;
  }
};

__device__ inline OnePassItem read_item(const Schedule& schedule, int round, const Attention& in) {
  OnePassItem result{};
  WorkItem work;
  if (!schedule.item(round, work)) return result;
  result.exists = true;
  result.head = work.head;
  result.queries = read_sequence(in.cu_seqlens_q, work.sequence, in.total_q, in.max_seqlen_q);
  result.keys = read_sequence(in.cu_seqlens_k, work.sequence, in.total_k, in.max_seqlen_k);
  return result;
}

// Where things lie in shared memory, in bytes.
template <class Traits>
struct OnePassMemory {
  __host__ __device__ OnePassMemory(int rows, int buffers) {
    constexpr int kRowBytes = Tile<Traits::D>::kRowBytes;
    query_tile = rows * kRowBytes;
    key_tile = Traits::CHUNK * kRowBytes;
    score_tile = rows * Tile<Traits::CHUNK>::kRowBytes;
    ring = 2 * buffers * query_tile;
    scores = ring + 2 * kRing * key_tile;
    statistics = scores + 2 * score_tile;
    bias = statistics + 2 * buffers * rows * 4;
    dweight = bias + kRing * Traits::CHUNK * 4;
    items = dweight + Traits::WARPS * Traits::CHUNK * 4;
    schedule = items + kItems * static_cast<int>(sizeof(OnePassItem));
  }
  int query_tile, key_tile, score_tile;                          // sizes
  int ring, scores, statistics, bias, dweight, items, schedule;  // offsets
};

// Everything that is on its way into shared memory, and its groups of copies.
template <class Traits>
class OnePassLoader {
  static constexpr int D = Traits::D, THREADS = Traits::THREADS;
  // Lanes that share a row of delta, 16 bytes each.
  static constexpr int kLanes = D <= 32 ? 4 : D <= 64 ? 8 : 16;
  static constexpr int kRowsAtOnce = THREADS / kLanes;

 public:
  __device__ OnePassLoader(const OnePassParams& params, unsigned char* memory, const OnePassMemory<Traits>& at)
      : params_(params), memory_(memory), base_(shared_address(memory)), at_(at) {}

  __device__ __forceinline__ uint32_t q(int buffer) const { return base_ + 2 * buffer * at_.query_tile; }
  __device__ __forceinline__ uint32_t dout(int buffer) const { return q(buffer) + at_.query_tile; }
  __device__ __forceinline__ uint32_t k(int slot) const { return base_ + at_.ring + 2 * slot * at_.key_tile; }
  __device__ __forceinline__ uint32_t v(int slot) const { return k(slot) + at_.key_tile; }
  __device__ __forceinline__ float* lse(int buffer) const {
    return reinterpret_cast<float*>(memory_ + at_.statistics) + 2 * buffer * params_.rows;
  }
  __device__ __forceinline__ float* delta(int buffer) const { return lse(buffer) + params_.rows; }
  __device__ __forceinline__ float* bias(int slot) const {
    return reinterpret_cast<float*>(memory_ + at_.bias) + slot * Traits::CHUNK;
  }

  // Keys and values of a chunk.
  __device__ __forceinline__ void load_keys(const OnePassItem& item, int chunk, int slot) {
    const Attention& in = params_.call.in;
    const int valid = item.keys.length - chunk * Traits::CHUNK;
    const int64_t row = item.keys.start + chunk * Traits::CHUNK;
    copy_rows_async<D, THREADS>(k(slot), rows_of(in.k, row, item.head), in.k.token_stride, Traits::CHUNK, valid,
                                in.head_dim);
    copy_rows_async<D, THREADS>(v(slot), rows_of(in.v, row, item.head), in.v.token_stride, Traits::CHUNK, valid,
                                in.head_dim);
    const int own = threadIdx.x;
    if (own < Traits::CHUNK) {
      float value = own < valid ? 0 : -INFINITY;
      if (in.key_weight != nullptr && own < valid) value = log2_weight(__ldg(in.key_weight + row + own));
      bias(slot)[own] = value;
    }
  }

  // Queries and output gradients of rows [begin, end), multiples of 16.
  __device__ __forceinline__ void load_queries(const OnePassItem& item, int buffer, int begin, int end) {
    if (begin >= end) return;
    const Attention& in = params_.call.in;
    const Rows& dout_rows = params_.call.dout;
    const int64_t row = item.queries.start + begin;
    const int valid = item.queries.length - begin;
    const int offset = begin * Tile<D>::kRowBytes;
    copy_rows_async<D, THREADS>(q(buffer) + offset, rows_of(in.q, row, item.head), in.q.token_stride, end - begin,
                                valid, in.head_dim);
    copy_rows_async<D, THREADS>(dout(buffer) + offset, rows_of(dout_rows, row, item.head), dout_rows.token_stride,
                                end - begin, valid, in.head_dim);
  }

  // lse and delta of the same rows, straight from global memory, which is why they can be asked for ahead of time.
  __device__ __forceinline__ void compute_statistics(const OnePassItem& item, int buffer, int begin, int end) {
    using T = typename Traits::T;
    const Attention& in = params_.call.in;
    const AttentionBackward& call = params_.call;
    const int lane = threadIdx.x % kLanes;
    for (int base = begin; base < end; base += kRowsAtOnce) {
      const int row = base + threadIdx.x / kLanes;
      const bool valid = row < min(end, item.queries.length);
      const int64_t token = item.queries.start + row;
      float sum = 0;
      if (valid && lane * 8 < in.head_dim) {
        const uint4 x = __ldg(reinterpret_cast<const uint4*>(rows_of(call.dout, token, item.head) + lane * 8));
        const uint4 y = __ldg(
            reinterpret_cast<const uint4*>(call.out + (token * in.num_heads + item.head) * in.head_dim + lane * 8));
        sum = dot<T>(x.x, y.x) + dot<T>(x.y, y.y) + dot<T>(x.z, y.z) + dot<T>(x.w, y.w);
      }
#pragma unroll
      for (int distance = 1; distance < kLanes; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      if (lane == 0 && row < end) {
        const int64_t statistics = item.head * in.total_q + token;
        if (valid && call.dlse != nullptr) sum -= __ldg(call.dlse + statistics);
        lse(buffer)[row] = log2_lse(call.lse + statistics, valid);
        delta(buffer)[row] = sum;
      }
    }
  }

  __device__ __forceinline__ void commit() {
    copy_async_commit();
    ++groups_;
  }
  __device__ __forceinline__ int groups() const { return groups_; }

 private:
  const OnePassParams& params_;
  unsigned char* memory_;
  uint32_t base_;
  OnePassMemory<Traits> at_;
  int groups_ = 0;
};

}  // namespace msvit::cuda
