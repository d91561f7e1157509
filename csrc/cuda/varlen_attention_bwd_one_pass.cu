// Attention inside each packed sequence, backward, short sequences: one kernel, each input read once.
//
//   P~_ij = exp(s_ij - lse_i),  p_ij = w_j P~_ij,  delta_i = dout_i . out_i - dlse_i,  g_ij = dout_i . v_j - delta_i
//   dv_j = sum_i p_ij dout_i,  ds_ij = p_ij g_ij,  dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i
//   dweight_j = sum_heads sum_i P~_ij g_ij
//
// A work item is one head of one sequence. Its queries and output gradients stay in shared memory, 16 rows at a time
// dealt to the warps, which keep dq in registers. Keys and values pass in chunks of 32 or 64. For each chunk every warp
// computes P and dS of its queries, adds to dq and leaves P and dS in shared memory; then the warps share out dk and dv
// of the chunk, sums over all queries, and write them. So nothing is added up in global memory, and no atomics are
// needed. While an item is worked on, the next one's queries arrive, a slice with each chunk, in a second pair of tiles
// where that fits; keys and values run two chunks ahead, across items.
#include <type_traits>

#include "dispatch.cuh"
#include "launch.cuh"
#include "sequences.cuh"
#include "tiles.cuh"
#include "varlen_attention_bwd.h"

namespace msvit::cuda {
namespace {

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

__device__ OnePassItem read_item(const Schedule& schedule, int round, const Attention& in) {
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
    copy_rows_async<D, THREADS>(k(slot), in.k.data + row * in.k.token_stride + item.head * in.k.head_stride,
                                in.k.token_stride, Traits::CHUNK, valid, in.head_dim);
    copy_rows_async<D, THREADS>(v(slot), in.v.data + row * in.v.token_stride + item.head * in.v.head_stride,
                                in.v.token_stride, Traits::CHUNK, valid, in.head_dim);
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
    const Rows& rows = params_.call.dout;
    const int64_t row = item.queries.start + begin;
    const int valid = item.queries.length - begin;
    const int offset = begin * Tile<D>::kRowBytes;
    copy_rows_async<D, THREADS>(q(buffer) + offset, in.q.data + row * in.q.token_stride + item.head * in.q.head_stride,
                                in.q.token_stride, end - begin, valid, in.head_dim);
    copy_rows_async<D, THREADS>(dout(buffer) + offset,
                                rows.data + row * rows.token_stride + item.head * rows.head_stride, rows.token_stride,
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
        const uint4 x = __ldg(reinterpret_cast<const uint4*>(call.dout.data + token * call.dout.token_stride +
                                                             item.head * call.dout.head_stride + lane * 8));
        const uint4 y = __ldg(
            reinterpret_cast<const uint4*>(call.out + (token * in.num_heads + item.head) * in.head_dim + lane * 8));
        sum = dot<T>(x.x, y.x) + dot<T>(x.y, y.y) + dot<T>(x.z, y.z) + dot<T>(x.w, y.w);
      }
#pragma unroll
      for (int distance = 1; distance < kLanes; distance *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
      if (lane == 0 && row < end) {
        const int64_t statistics = item.head * in.total_q + token;
        float log_sum = valid ? __ldg(call.lse + statistics) * kLog2E : INFINITY;
        if (log_sum == -INFINITY) log_sum = INFINITY;  // no key: exp2(score - it) must be 0
        if (valid && call.dlse != nullptr) sum -= __ldg(call.dlse + statistics);
        lse(buffer)[row] = log_sum;
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
  template <class T>
  __device__ static __forceinline__ float dot(uint32_t x, uint32_t y) {
    const float2 left = unpack<T>(x), right = unpack<T>(y);
    return left.x * right.x + left.y * right.y;
  }

  const OnePassParams& params_;
  unsigned char* memory_;
  uint32_t base_;
  OnePassMemory<Traits> at_;
  int groups_ = 0;
};

// The queries of a warp, up to FRAGMENTS neighbouring tiles of 16 rows, and their dq.
template <class Traits>
class OnePassQueries {
  using T = typename Traits::T;
  static constexpr int D = Traits::D, FRAGMENTS = Traits::FRAGMENTS;
  static constexpr bool HELD = Traits::kQueriesInRegisters;

 public:
  __device__ __forceinline__ void start(uint32_t q, uint32_t dout, const float* lse, const float* delta, int begin,
                                        int active) {
    const int lane = threadIdx.x % kWarpSize;
    q_ = q, dout_ = dout, begin_ = begin, active_ = active;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f) {
      for (int block = 0; block < D / 8; ++block)
        for (int i = 0; i < 4; ++i) dq_[f][block][i] = 0;
      if (f >= active) continue;
      if constexpr (HELD) {
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
          load_a_from_rows<D>(held_q_[f][step], q, first_row(f), step);
          load_a_from_rows<D>(held_dout_[f][step], dout, first_row(f), step);
        }
      }
      for (int half = 0; half < 2; ++half) {
        lse_[f][half] = lse[first_row(f) + lane / 4 + 8 * half];
        delta_[f][half] = delta[first_row(f) + lane / 4 + 8 * half];
      }
    }
  }

  // P and dS of the first ACTIVE fragments and the first `valid` keys of a chunk, to the tiles `p` and `ds`; adds to
  // dq. Where `dweight` is not null it gets the column sums of this warp.
  template <int ACTIVE>
  __device__ __forceinline__ void attend(uint32_t k, uint32_t v, const float* bias, int valid, float scale, uint32_t p,
                                         uint32_t ds, float* dweight) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int group = 0; group < Traits::CHUNK / 16; ++group) {
      if (16 * group >= valid) continue;
      float s[ACTIVE][2][4] = {}, dp[ACTIVE][2][4] = {};
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        uint32_t b_k[4], b_v[4];
        load_b_from_columns<D>(b_k, k, 16 * group, step);
        load_b_from_columns<D>(b_v, v, 16 * group, step);
#pragma unroll
        for (int f = 0; f < ACTIVE; ++f) {
          uint32_t a[4];
          get(a, held_q_, q_, f, step);
          mma<T>(s[f][0], a, b_k[0], b_k[1]);
          mma<T>(s[f][1], a, b_k[2], b_k[3]);
          get(a, held_dout_, dout_, f, step);
          mma<T>(dp[f][0], a, b_v[0], b_v[1]);
          mma<T>(dp[f][1], a, b_v[2], b_v[3]);
        }
      }
      // From here on s holds P and dp holds dS.
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        const int column = 16 * group + 8 * block + 2 * (lane % 4);
        const float2 log_weight = *reinterpret_cast<const float2*>(bias + column);
        float sums[2] = {};
#pragma unroll
        for (int f = 0; f < ACTIVE; ++f) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float exponent = s[f][block][i] * scale - lse_[f][i / 2];
            const float g = dp[f][block][i] - delta_[f][i / 2];
            s[f][block][i] = exp2_approx(exponent + (i % 2 ? log_weight.y : log_weight.x));
            dp[f][block][i] = s[f][block][i] * g;
            if (dweight != nullptr) sums[i % 2] += exp2_approx(exponent) * g;
          }
        }
        if (dweight != nullptr) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
#pragma unroll
            for (int distance = 4; distance < kWarpSize; distance *= 2)
              sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], distance);
          }
          if (lane < 4) *reinterpret_cast<float2*>(dweight + column) = make_float2(sums[0], sums[1]);
        }
      }
      uint32_t a[ACTIVE][4];
#pragma unroll
      for (int f = 0; f < ACTIVE; ++f) {
        pack_operand<T>(a[f], s[f][0], s[f][1]);
        store_operand(p, f, group, a[f]);
        pack_operand<T>(a[f], dp[f][0], dp[f][1]);
        store_operand(ds, f, group, a[f]);
      }
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
        uint32_t b[4];
        load_b_from_rows<D>(b, k, 16 * group, step);
#pragma unroll
        for (int f = 0; f < ACTIVE; ++f) {
          mma<T>(dq_[f][2 * step], a[f], b[0], b[1]);
          mma<T>(dq_[f][2 * step + 1], a[f], b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void store(uint16_t* rows, int64_t stride, float scale, int length, int head_dim) const {
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f) {
      if (f < active_)
        store_fragment<T, D>(rows + first_row(f) * stride, stride, dq_[f], {scale, scale}, length - first_row(f),
                             head_dim);
    }
  }

 private:
  __device__ __forceinline__ int first_row(int f) const { return begin_ + f * kRowsPerFragment; }

  template <int STEPS>
  __device__ __forceinline__ void get(uint32_t (&a)[4], const uint32_t (&held)[FRAGMENTS][STEPS][4], uint32_t tile,
                                      int f, int step) const {
    if constexpr (HELD) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = held[f][step][i];
    } else {
      load_a_from_rows<D>(a, tile, first_row(f), step);
    }
  }

  // Operand a to rows of fragment f and columns of a group of 16 keys.
  __device__ __forceinline__ void store_operand(uint32_t tile, int f, int group, const uint32_t (&a)[4]) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row(f) + lane / 4 + 8 * (i % 2);
      store_shared_32(tile + Tile<Traits::CHUNK>::offset(row, 2 * group + i / 2) + 4 * (lane % 4), a[i]);
    }
  }

  uint32_t q_ = 0, dout_ = 0;
  int begin_ = 0, active_ = 0;  // first row; tiles that have rows
  uint32_t held_q_[FRAGMENTS][HELD ? D / 16 : 1][4], held_dout_[FRAGMENTS][HELD ? D / 16 : 1][4];
  float dq_[FRAGMENTS][D / 8][4];
  float lse_[FRAGMENTS][2], delta_[FRAGMENTS][2];
};

// dk or dv of half the keys of a chunk and a slice of the columns: the share of this warp.
template <class Traits>
__device__ __forceinline__ void reduce_keys(const AttentionBackward& call, const OnePassItem& item, int chunk,
                                            uint32_t q, uint32_t dout, uint32_t p, uint32_t ds) {
  using T = typename Traits::T;
  constexpr int kBlocks = Traits::CHUNK / 2 / 16, kColumns = Traits::D / (Traits::WARPS / 4), kSteps = kColumns / 16;
  const int warp = threadIdx.x / kWarpSize;
  const bool is_dk = warp % 2;
  const int half = warp / 2 % 2, slice = warp / 4;
  const int first = chunk * Traits::CHUNK + half * (Traits::CHUNK / 2);
  const int valid = item.keys.length - first;
  if (valid <= 0) return;
  float sums[kBlocks][kColumns / 8][4] = {};
  const int num_tiles = item.num_tiles();
#pragma unroll 1  // two at once would spill in the widest kernels
  for (int tile = 0; tile < num_tiles; ++tile) {
    uint32_t a[kBlocks][4];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block)
      if (16 * block < valid)
        load_a_from_columns<Traits::CHUNK>(a[block], is_dk ? ds : p, 16 * tile, half * kBlocks + block);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t b[4];
      load_b_from_rows<Traits::D>(b, is_dk ? q : dout, 16 * tile, slice * kSteps + step);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        if (16 * block >= valid) continue;
        mma<T>(sums[block][2 * step], a[block], b[0], b[1]);
        mma<T>(sums[block][2 * step + 1], a[block], b[2], b[3]);
      }
    }
  }
  const Attention& in = call.in;
  const int64_t stride = static_cast<int64_t>(in.num_heads) * in.head_dim;
  const float factor = is_dk ? in.softmax_scale : 1;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int row = first + 16 * block;
    const int64_t target = (item.keys.start + row) * stride + item.head * in.head_dim + slice * kColumns;
    store_fragment<T, kColumns>((is_dk ? call.dk : call.dv) + target, stride, sums[block], {factor, factor},
                                valid - 16 * block, in.head_dim - slice * kColumns);
  }
}

template <class Traits>
__global__ __launch_bounds__(Traits::THREADS,
                             Traits::kMinBlocks) void one_pass_kernel(const __grid_constant__ OnePassParams params) {
  MSVIT_SHARED_MEMORY(memory);
  const AttentionBackward& call = params.call;
  const Attention& in = call.in;
  const OnePassMemory<Traits> at(params.rows, params.buffers);
  OnePassLoader<Traits> loader(params, memory, at);
  const Schedule schedule(memory + at.schedule, in.cu_seqlens_q, in.batch, in.max_seqlen_q, in.num_heads, 1);
  const uint32_t p = shared_address(memory) + at.scores, ds = p + at.score_tile;
  float* dweight = call.dweight == nullptr ? nullptr : reinterpret_cast<float*>(memory + at.dweight);
  const int warp = threadIdx.x / kWarpSize;
  const float scale = in.softmax_scale * kLog2E;

  // In shared memory, since registers are scarce. Thread 0 writes one while the three before it are in use.
  OnePassItem* items = reinterpret_cast<OnePassItem*>(memory + at.items);
  if (threadIdx.x == 0)
    for (int round = 0; round < kItems - 1; ++round) items[round] = read_item(schedule, round, in);
  __syncthreads();
  // Keys are loaded two chunks ahead: chunk `ahead_chunk` of the item of `ahead_round`.
  int ahead_round = 0, ahead_chunk = 0;
  const auto load_ahead = [&](int slot) {
    if (ahead_chunk == items[ahead_round % kItems].template num_chunks<Traits>()) ahead_chunk = 0, ++ahead_round;
    const OnePassItem& item = items[ahead_round % kItems];
    if (item.exists) loader.load_keys(item, ahead_chunk++, slot);
  };
  // The slot of the chunk in use; numbers of the groups of copies that bring it and the one after it.
  int slot = 0, group_now = 0, group_next = 0;
  const auto end_of = [](const OnePassItem& item) { return item.num_tiles() * kRowsPerFragment; };

  if (items[0].exists) {
    load_ahead(0);
    group_now = loader.groups();
    loader.commit();
    load_ahead(1);
    group_next = loader.groups();
    loader.commit();
  }
  int newest = 0;  // groups that may still be on their way when the next item begins
  for (int round = 0, buffer = 0; items[round % kItems].exists; ++round, buffer = (buffer + 1) % params.buffers) {
    const OnePassItem &current = items[round % kItems], &next = items[(round + 1) % kItems];
    if (round == 0 || params.buffers == 1) {
      __syncthreads();  // all warps are done with the item before
      loader.load_queries(current, buffer, 0, end_of(current));
      loader.commit();
      loader.compute_statistics(current, buffer, 0, end_of(current));
      copy_async_wait<0>();
      __syncthreads();
    }
    const int num_chunks = current.template num_chunks<Traits>();
    // The next item's queries come in slices, the last of them one chunk before they are needed where there is time.
    const int num_slices = max(num_chunks - 1, 1);
    const int slice_rows = (next.num_tiles() + num_slices - 1) / num_slices * kRowsPerFragment;
    const int num_tiles = current.num_tiles();
    const int per_warp = current.template tiles_per_warp<Traits>();
    const int active = min(num_tiles - warp * per_warp, per_warp);  // <= 0 for a warp without queries
    OnePassQueries<Traits> queries;

    for (int chunk = 0; chunk < num_chunks; ++chunk) {
      int pending = loader.groups() - 1 - group_now;
      if (chunk == 0) pending = min(pending, newest);
      copy_async_wait_for_all_but(pending);
      __syncthreads();
      if (chunk == 0)
        queries.start(loader.q(buffer), loader.dout(buffer), loader.lse(buffer), loader.delta(buffer),
                      warp * per_warp * kRowsPerFragment, active);
      group_now = group_next;
      group_next = loader.groups();
      load_ahead((slot + 2) % kRing);
      const int begin = chunk * slice_rows, end = min(begin + slice_rows, end_of(next));
      const bool prefetch = params.buffers == 2 && next.exists && chunk < num_slices;
      if (prefetch) loader.load_queries(next, 1 - buffer, begin, end);
      loader.commit();

      const int valid = current.keys.length - chunk * Traits::CHUNK;
      float* sums = dweight == nullptr ? nullptr : dweight + warp * Traits::CHUNK;
      const auto attend = [&](auto count) {
        queries.template attend<decltype(count)::value>(loader.k(slot), loader.v(slot), loader.bias(slot), valid, scale,
                                                        p, ds, sums);
      };
      if (active == 1) attend(std::integral_constant<int, 1>{});
      if constexpr (Traits::FRAGMENTS >= 2)
        if (active == 2) attend(std::integral_constant<int, 2>{});
      if constexpr (Traits::FRAGMENTS >= 3)
        if (active == 3) attend(std::integral_constant<int, 3>{});
      if (prefetch) loader.compute_statistics(next, 1 - buffer, begin, end);
      __syncthreads();

      reduce_keys<Traits>(call, current, chunk, loader.q(buffer), loader.dout(buffer), p, ds);
      if (dweight != nullptr && threadIdx.x < min(valid, Traits::CHUNK)) {
        float sum = 0;
        for (int other = 0; other * per_warp < num_tiles; ++other) sum += dweight[other * Traits::CHUNK + threadIdx.x];
        call.dweight[current.head * in.total_k + current.keys.start + chunk * Traits::CHUNK + threadIdx.x] = sum;
      }
      slot = (slot + 1) % kRing;
    }
    const int64_t stride = static_cast<int64_t>(in.num_heads) * in.head_dim;
    queries.store(call.dq + current.queries.start * stride + current.head * in.head_dim, stride, in.softmax_scale,
                  current.queries.length, in.head_dim);
    newest = num_chunks > 1 ? 1 : 0;
    if (threadIdx.x == 0) items[(round + 3) % kItems] = read_item(schedule, round + 3, in);
  }
}

template <class Traits>
int shared_bytes(const Attention& in, int buffers) {
  const int rows = (in.max_seqlen_q + 15) / 16 * 16;
  return OnePassMemory<Traits>(rows, buffers).schedule + schedule_bytes(in.batch);
}

template <class Traits>
void launch_one_pass(const AttentionBackward& call, int device, uintptr_t stream) {
  const Attention& in = call.in;
  const int buffers = shared_bytes<Traits>(in, 2) <= shared_memory_limit(device) ? 2 : 1;
  const OnePassParams params{call, (in.max_seqlen_q + 15) / 16 * 16, buffers};
  const auto kernel = one_pass_kernel<Traits>;
  const int bytes = shared_bytes<Traits>(in, buffers);
  const int64_t slots =
      static_cast<int64_t>(resident_blocks(kernel, Traits::THREADS, bytes)) * num_multiprocessors(device);
  const int64_t items = static_cast<int64_t>(in.batch) * in.num_heads;
  launch(kernel, static_cast<int>(std::min(slots, items)), Traits::THREADS, bytes, stream, params);
}

// Calls body(OnePassTraits<...>{}) with the smallest block that holds the queries of a sequence; false if there is
// none.
template <class T, int D, class Body>
bool with_traits(int max_seqlen_q, const Body& body) {
  if (max_seqlen_q <= 64) return body(OnePassTraits<T, D, 4, 1>{}), true;
  if (max_seqlen_q <= 128) return body(OnePassTraits<T, D, D <= 64 ? 4 : 8, D <= 64 ? 2 : 1>{}), true;
  if (max_seqlen_q <= 256) return body(OnePassTraits<T, D, 8, 2, D == 64 ? 64 : 32>{}), true;
  if constexpr (D <= 64) {
    if (max_seqlen_q <= 384) return body(OnePassTraits<T, D, 8, 3>{}), true;
  }
  return false;
}

}  // namespace

bool fits_one_pass(const Attention& in, int device) {
  bool fits = false;
  dispatch(true, in.head_dim, [&](auto element, auto width) {
    with_traits<decltype(element), decltype(width)::value>(in.max_seqlen_q, [&](auto traits) {
      fits = shared_bytes<decltype(traits)>(in, 1) <= shared_memory_limit(device);
    });
  });
  return fits;
}

void varlen_attention_bwd_one_pass(const AttentionBackward& call, bool is_bf16, int device, uintptr_t stream) {
  dispatch(is_bf16, call.in.head_dim, [&](auto element, auto width) {
    with_traits<decltype(element), decltype(width)::value>(
        call.in.max_seqlen_q, [&](auto traits) { launch_one_pass<decltype(traits)>(call, device, stream); });
  });
}

}  // namespace msvit::cuda
