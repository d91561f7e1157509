// Attention inside each packed sequence, backward, short sequences (derived in docs/operators.md): one kernel.
//
//   P~_ij = exp(s_ij - lse_i),  p_ij = w_j P~_ij,  delta_i = dout_i . out_i - dlse_i,  g_ij = dout_i . v_j - delta_i
//   dv_j = sum_i p_ij dout_i,  ds_ij = p_ij g_ij,  dq_i = scale sum_j ds_ij k_j,  dk_j = scale sum_i ds_ij q_i
//   dweight_j = sum_heads sum_i P~_ij g_ij
//
// A work item is one head of one sequence, and a block computes all of its gradients. The item's queries and output
// gradients stay in shared memory; each warp takes some tiles of 16 rows and keeps their dq in registers. Keys and
// values pass in chunks of 32 or 64. For each chunk, every warp computes P and dS of its queries, adds to dq, and
// stores P and dS to shared memory. Then each warp sums its share of the chunk's dk and dv over all queries and stores
// it to global memory.
//
// Every input is read once from global memory and every gradient is written once. Products are 16-bit, sums fp32, each
// sum in one order and without atomics: same inputs, same bits. Loads run ahead of their use: keys and values by two
// chunks, also across items; the queries of the next item by slices, one per chunk, into a second pair of tiles if
// shared memory holds two.
#include <type_traits>

#include "dispatch.cuh"
#include "launch.cuh"
#include "one_pass_loader.cuh"
#include "one_pass_queries.cuh"
#include "sequences.cuh"
#include "tiles.cuh"
#include "varlen_attention_bwd.h"

namespace msvit::cuda {
namespace {

// Computes and stores the share of this warp in a chunk: dk or dv of half of the keys, in a slice of the columns, as a
// sum over all queries of the item. `q` and `dout` are tiles [rows, D]; `p` and `ds` are tiles [rows, CHUNK].
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
  // The permutation of a tile repeats after 16 rows, so that the addresses advance by constants.
  uint32_t left = is_dk ? ds : p, right = is_dk ? q : dout;
  const uint32_t left_end = left + num_tiles * kRowsPerFragment * Tile<Traits::CHUNK>::kRowBytes;
  const auto add_tiles = [&](auto blocks) {
    constexpr int kCount = decltype(blocks)::value;
#pragma unroll 1  // unrolled by two, the widest kernels would spill
    for (; left != left_end;) {
      uint32_t a[kCount][4];
#pragma unroll
      for (int block = 0; block < kCount; ++block)
        load_a_from_columns<Traits::CHUNK>(a[block], left, 0, half * kBlocks + block);
      uint32_t b[kSteps][4];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) load_b_from_rows<Traits::D>(b[step], right, 0, slice * kSteps + step);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int block = 0; block < kCount; ++block) {
          mma<T>(sums[block][2 * step], a[block], b[step][0], b[step][1]);
          mma<T>(sums[block][2 * step + 1], a[block], b[step][2], b[step][3]);
        }
      }
      left += kRowsPerFragment * Tile<Traits::CHUNK>::kRowBytes;
      right += kRowsPerFragment * Tile<Traits::D>::kRowBytes;
    }
  };
  if (kBlocks == 1 || valid <= kRowsPerFragment) {
    add_tiles(std::integral_constant<int, 1>{});
  } else {
    add_tiles(std::integral_constant<int, kBlocks>{});
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

// dq, dk, dv and, per head, dweight. A block takes the items of its schedule, one head of one sequence each.
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

  // In shared memory, because registers are scarce. One item is written while the three before it are in use.
  OnePassItem* items = reinterpret_cast<OnePassItem*>(memory + at.items);
  if (threadIdx.x == 0)
    for (int round = 0; round < kItems - 1; ++round) items[round] = read_item(schedule, round, in);
  __syncthreads();
  // Keys are loaded two chunks ahead, their weights three. A place stops at the first item that does not exist.
  struct Place {
    int round = 0, chunk = 0;
  } ahead;
  const auto item_at = [&](const Place& place) -> const OnePassItem& { return items[place.round % kItems]; };
  const auto step = [&](Place& place) {
    if (item_at(place).exists && ++place.chunk == item_at(place).template num_chunks<Traits>())
      place.chunk = 0, ++place.round;
  };
  const auto load_ahead = [&](int slot) {
    if (item_at(ahead).exists) loader.load_keys(item_at(ahead), ahead.chunk, slot);
  };
  // The ring slot of the chunk in use, and the numbers of the groups of copies that load it and the chunk after it.
  int slot = 0, group_now = 0, group_next = 0;
  const auto end_of = [](const OnePassItem& item) { return item.num_tiles() * kRowsPerFragment; };

  if (items[0].exists) {
    Place place;
    float weights[kRing];
#pragma unroll
    for (int i = 0; i < kRing; ++i) {
      weights[i] = loader.load_weight(item_at(place), place.chunk);
      step(place);
    }
    group_now = loader.groups();
    load_ahead(0);
    loader.commit();
    step(ahead);
    group_next = loader.groups();
    load_ahead(1);
    loader.commit();
    step(ahead);
#pragma unroll
    for (int i = 0; i < kRing; ++i) loader.store_bias(i, weights[i]);
  }
  int newest = 0;  // number of groups that may be incomplete when the next item begins
  for (int round = 0, buffer = 0; items[round % kItems].exists; ++round, buffer = (buffer + 1) % params.buffers) {
    const OnePassItem &current = items[round % kItems], &next = items[(round + 1) % kItems];
    if (round == 0 || params.buffers == 1) {
      __syncthreads();  // all warps have finished with the item before
      loader.load_queries(current, buffer, 0, end_of(current));
      loader.commit();
      loader.compute_statistics(current, buffer, 0, end_of(current));
      copy_async_wait<0>();
      __syncthreads();
    }
    const int num_chunks = current.template num_chunks<Traits>();
    // The next item's queries are loaded in slices, the last one in the last chunk but one, if there are two chunks.
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
      // The last warp does this, because it has the fewest queries.
      if (chunk == 0 && threadIdx.x == Traits::THREADS - kWarpSize)
        items[(round + 3) % kItems] = read_item(schedule, round + 3, in);
      __syncthreads();

      // Loaded before the products and stored after them, which hides the latency. The bias of this chunk is free.
      step(ahead);
      const float weight = loader.load_weight(item_at(ahead), ahead.chunk);
      typename OnePassLoader<Traits>::StatisticsInput statistics;
      if (prefetch) loader.load_statistics(statistics, next, begin, end);
      reduce_keys<Traits>(call, current, chunk, loader.q(buffer), loader.dout(buffer), p, ds);
      if (dweight != nullptr && threadIdx.x < min(valid, Traits::CHUNK)) {
        float sum = 0;
        for (int other = 0; other * per_warp < num_tiles; ++other) sum += dweight[other * Traits::CHUNK + threadIdx.x];
        call.dweight[current.head * in.total_k + current.keys.start + chunk * Traits::CHUNK + threadIdx.x] = sum;
      }
      loader.store_bias(slot, weight);
      if (prefetch) {
        loader.store_statistics(statistics, next, 1 - buffer, begin, end);
        loader.compute_statistics(next, 1 - buffer, begin + loader.kStatisticsRows, end);
      }
      slot = (slot + 1) % kRing;
    }
    const int64_t stride = static_cast<int64_t>(in.num_heads) * in.head_dim;
    queries.store(call.dq + current.queries.start * stride + current.head * in.head_dim, stride, in.softmax_scale,
                  current.queries.length, in.head_dim);
    newest = num_chunks > 1 ? 1 : 0;
  }
}

// Shared memory of a block.
template <class Traits>
int shared_bytes(const Attention& in, int buffers) {
  const int rows = (in.max_seqlen_q + 15) / 16 * 16;
  return OnePassMemory<Traits>(rows, buffers).schedule + schedule_bytes(in.batch);
}

// Starts as many blocks as run at the same time, or one per item; with two pairs of query tiles if they fit.
template <class Traits>
void launch_one_pass(const AttentionBackward& call, int device, uintptr_t stream) {
  const Attention& in = call.in;
  const int buffers = shared_bytes<Traits>(in, 2) <= shared_memory_limit(device) ? 2 : 1;
  const OnePassParams params{call, (in.max_seqlen_q + 15) / 16 * 16, buffers};
  const auto kernel = one_pass_kernel<Traits>;
  const int bytes = shared_bytes<Traits>(in, buffers);
  const int64_t slots =
      static_cast<int64_t>(resident_blocks(kernel, device, Traits::THREADS, bytes)) * num_multiprocessors(device);
  const int64_t items = static_cast<int64_t>(in.batch) * in.num_heads;
  launch(kernel, static_cast<int>(std::min(slots, items)), Traits::THREADS, bytes, stream, params);
}

// Calls body(OnePassTraits<...>{}) with the smallest block that holds the queries of a sequence; returns false if none
// does.
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
