// The backward of short sequences in one kernel: work items, layout of shared memory, and loads into it.
#pragma once

#include "sequences.cuh"
#include "tiles.cuh"
#include "varlen_attention.h"

namespace msvit::cuda {

constexpr int kRing = 3;   // chunks of keys and values in shared memory
constexpr int kItems = 4;  // known items: the one in use, two whose keys may be loading, and one being written

struct OnePassParams {
  AttentionBackward call;
  int rows;     // rows of a tile of queries, a multiple of 16
  int buffers;  // pairs of such tiles: 1, or 2 to load the next item ahead
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kWidthOfThreeBlocks = 32, kMostHeld = 1;  // ptxas needs more registers for these architectures
#else
constexpr int kWidthOfThreeBlocks = 64, kMostHeld = 3;
#endif

// Constants of one instantiation of the kernel.
template <class T_, int D_, int WARPS_, int FRAGMENTS_, int CHUNK_ = 32>
struct OnePassTraits {
  using T = T_;
  static constexpr int D = D_;
  static constexpr int WARPS = WARPS_;
  static constexpr int FRAGMENTS = FRAGMENTS_;  // most fragments of 16 queries per warp
  static constexpr int CHUNK = CHUNK_;          // keys per chunk
  static constexpr int THREADS = WARPS * kWarpSize;
  // Whether q and dout fit the registers, beside dq and the sums of dk and dv.
  static constexpr bool kQueriesInRegisters = FRAGMENTS * D + 4 * D / WARPS <= 192;
  // Blocks per multiprocessor: as many as leave a thread the registers that it needs.
  static constexpr int kMinBlocks = WARPS == 8 ? 1 : FRAGMENTS == 1 && D <= kWidthOfThreeBlocks ? 3 : 2;
  // Rows whose statistics a thread computes at a time: as many as the registers hold.
  static constexpr int kHeld = kMinBlocks == 3 || FRAGMENTS * D > 192 ? 1 : kMostHeld;
};

// One head of one sequence. A sequence without keys has one empty chunk, so that the zeros of its dq are written.
struct alignas(16) OnePassItem {
  bool exists;
  int head;
  Sequence queries, keys;

  template <class Traits>
  __device__ int num_chunks() const {
    return max((keys.length + Traits::CHUNK - 1) / Traits::CHUNK, 1);
  }
  // Tiles of 16 queries.
  __device__ int num_tiles() const { return (queries.length + kRowsPerFragment - 1) / kRowsPerFragment; }

  // Number of neighbouring tiles that a warp takes. A multiprocessor has four schedulers, so four warps keep the tensor
  // cores as busy as eight. If four warps hold all tiles, they read keys and values from shared memory less often.
  template <class Traits>
  __device__ int tiles_per_warp() const {
    const int over_four = (num_tiles() + 3) / 4;
    return over_four <= Traits::FRAGMENTS ? max(over_four, 1) : (num_tiles() + Traits::WARPS - 1) / Traits::WARPS;
  }
};

// The item of this block in `round`; `exists` is false if there is none.
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

// Layout of shared memory, in bytes.
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

// Loads everything that the kernel reads into shared memory, and counts the groups of asynchronous copies.
template <class Traits>
class OnePassLoader {
  static constexpr int D = Traits::D, THREADS = Traits::THREADS;
  // Lanes that compute delta of a row together, 16 bytes each.
  static constexpr int kLanes = D <= 32 ? 4 : D <= 64 ? 8 : 16;
  static constexpr int kRowsAtOnce = THREADS / kLanes;
  static constexpr int kHeld = Traits::kHeld;

 public:
  // Inputs of lse and delta, of kHeld rows a thread.
  struct StatisticsInput {
    uint4 dout[kHeld], out[kHeld];
    float scalar[kHeld];  // lse in lane 0 of a row, dlse in lane 1
  };
  static constexpr int kStatisticsRows = kHeld * kRowsAtOnce;

  __device__ OnePassLoader(const OnePassParams& params, unsigned char* memory, const OnePassMemory<Traits>& at)
      : params_(params), memory_(memory), base_(shared_address(memory)), at_(at) {}

  // Places in shared memory: tiles [rows, D] of q and dout, tiles [CHUNK, D] of k and v, floats [rows] of lse and
  // delta, and floats [CHUNK] of bias.
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

  // Starts to copy the keys and values of a chunk.
  __device__ __forceinline__ void load_keys(const OnePassItem& item, int chunk, int slot) {
    const Attention& in = params_.call.in;
    const int valid = item.keys.length - chunk * Traits::CHUNK;
    const int64_t row = item.keys.start + chunk * Traits::CHUNK;
    copy_rows_async<D, THREADS>(k(slot), rows_of(in.k, row, item.head), in.k.token_stride, Traits::CHUNK, valid,
                                in.head_dim);
    copy_rows_async<D, THREADS>(v(slot), rows_of(in.v, row, item.head), in.v.token_stride, Traits::CHUNK, valid,
                                in.head_dim);
  }

  // Loads the weight of this thread's key of a chunk; 0 if it has none. `store_bias` stores its logarithm.
  __device__ __forceinline__ float load_weight(const OnePassItem& item, int chunk) {
    const float* weight = params_.call.in.key_weight;
    const int own = chunk * Traits::CHUNK + threadIdx.x;
    if (threadIdx.x >= Traits::CHUNK || own >= item.keys.length) return 0;
    return weight == nullptr ? 1 : __ldg(weight + item.keys.start + own);
  }
  __device__ __forceinline__ void store_bias(int slot, float weight) {
    if (threadIdx.x < Traits::CHUNK) bias(slot)[threadIdx.x] = log2_weight(weight);
  }

  // Starts to copy queries and output gradients of rows [begin, end), both multiples of 16.
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

  // Computes lse and delta of rows [begin, end) from global memory, independently of the copies.
  __device__ __forceinline__ void compute_statistics(const OnePassItem& item, int buffer, int begin, int end) {
#pragma unroll 1
    for (; begin < end; begin += kStatisticsRows) {
      StatisticsInput input;
      load_statistics(input, item, begin, end);
      store_statistics(input, item, buffer, begin, end);
    }
  }

  // The two halves of `compute_statistics`, for up to kStatisticsRows rows; other work between them hides the latency.
  __device__ __forceinline__ void load_statistics(StatisticsInput& input, const OnePassItem& item, int begin, int end) {
    const Attention& in = params_.call.in;
    const AttentionBackward& call = params_.call;
    const int lane = threadIdx.x % kLanes, first = begin + threadIdx.x / kLanes;
    const int valid = min(end, item.queries.length) - first;
    const int columns = lane * 8 < in.head_dim ? valid : 0;
    const float* scalars = lane == 0 ? call.lse : lane == 1 ? call.dlse : nullptr;
    const int64_t token = item.queries.start + first;
    const int64_t out_stride = static_cast<int64_t>(in.num_heads) * in.head_dim;
    const uint16_t* dout = rows_of(call.dout, token, item.head) + lane * 8;
    const uint16_t* out = call.out + token * out_stride + item.head * in.head_dim + lane * 8;
    if (scalars != nullptr) scalars += item.head * in.total_q + token;
#pragma unroll
    for (int step = 0; step < kHeld; ++step) {
      const int row = step * kRowsAtOnce;
      input.dout[step] = input.out[step] = make_uint4(0, 0, 0, 0);
      input.scalar[step] = 0;
      if (row < columns) {
        input.dout[step] = __ldg(reinterpret_cast<const uint4*>(dout + row * call.dout.token_stride));
        input.out[step] = __ldg(reinterpret_cast<const uint4*>(out + row * out_stride));
      }
      if (row < valid && scalars != nullptr) input.scalar[step] = __ldg(scalars + row);
    }
  }

  __device__ __forceinline__ void store_statistics(const StatisticsInput& input, const OnePassItem& item, int buffer,
                                                   int begin, int end) {
    using T = typename Traits::T;
    const int lane = threadIdx.x % kLanes, first = begin + threadIdx.x / kLanes;
#pragma unroll
    for (int step = 0; step < kHeld; ++step) {
      if (begin + step * kRowsAtOnce >= end) break;
      const uint4 &x = input.dout[step], &y = input.out[step];
      float sum = dot<T>(x.x, y.x) + dot<T>(x.y, y.y) + dot<T>(x.z, y.z) + dot<T>(x.w, y.w);
      if (lane == 1) sum -= input.scalar[step];
#pragma unroll
      for (int distance = 1; distance < kLanes; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      const int row = first + step * kRowsAtOnce;
      if (lane == 0 && row < end) {
        lse(buffer)[row] = log2_lse(input.scalar[step], row < item.queries.length);
        delta(buffer)[row] = sum;
      }
    }
  }

  // Ends a group of copies; `groups` counts them.
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
