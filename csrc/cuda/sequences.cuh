// Positions of sequences in the packed tensors, and the order in which persistent blocks process them.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "cuda/device_code.cuh"
#include "tiles.cuh"
#include "varlen_attention.h"

namespace msvit::cuda {

// Rows are counted in `int`; the margin leaves room to round up to whole parts and chunks.
constexpr int64_t kMostTokens = (int64_t{1} << 31) - (1 << 20);

// The call with its bounds, which size shared memory and grids, cut to the lengths of its tensors.
template <class Call>
Call with_tight_bounds(Call call) {
  Attention& in = call.in;
  if (std::max(in.total_q, in.total_k) > kMostTokens) throw std::runtime_error("more than 2^31 - 2^20 tokens");
  in.max_seqlen_q = static_cast<int32_t>(std::min<int64_t>(in.max_seqlen_q, in.total_q));
  in.max_seqlen_k = static_cast<int32_t>(std::min<int64_t>(in.max_seqlen_k, in.total_k));
  return call;
}

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Rows [start, start + length) of a packed tensor.
struct Sequence {
  int64_t start;
  int length;
};

// Sequence `index`, clamped to [0, total] and to `max_length`: wrong offsets address nothing outside of the tensors.
__device__ __forceinline__ Sequence read_sequence(const int32_t* cu_seqlens, int index, int64_t total, int max_length) {
  const int64_t start = min(max(static_cast<int64_t>(__ldg(cu_seqlens + index)), int64_t{0}), total);
  const int64_t end = min(max(static_cast<int64_t>(__ldg(cu_seqlens + index + 1)), start), total);
  return {start, static_cast<int>(min(end - start, static_cast<int64_t>(max_length)))};
}

// log2 of the weight of a key; -inf for weight 0. A subnormal weight that the hardware flushes to 0 counts as 2^-149.
// NaN stays NaN; with fmaxf it would not.
__device__ __forceinline__ float log2_weight(float weight) {
  const float log = log2f(weight);
  return weight <= 0 ? -INFINITY : log < -149.f ? -149.f : log;
}

// exp2(x) g for a gradient of a weight: in two halves, because exp2(x) may overflow where the product does not, and 0
// if g is 0. NaN stays NaN.
__device__ __forceinline__ float exp2_times(float x, float g) {
  const float half = exp2_approx(x > 254.f ? 127.f : 0.5f * x);
  return half * g * half;
}

// lse of a row in units of log2. For a row that is not valid or has no key (lse -inf) it is +inf, so that
// exp2(score - lse) is 0.
__device__ __forceinline__ float log2_lse(float lse, bool valid) {
  const float value = lse * kLog2E;
  return !valid || value == -INFINITY ? INFINITY : value;
}
__device__ __forceinline__ float log2_lse(const float* lse, bool valid) {
  return log2_lse(valid ? __ldg(lse) : 0, valid);
}

// Address of one head of a token; the rows of the next tokens follow at token_stride.
__device__ __forceinline__ const uint16_t* rows_of(const Rows& rows, int64_t token, int head) {
  return rows.data + token * rows.token_stride + head * rows.head_stride;
}

// ---- the schedule: work items (sequence, head, part), long sequences first

constexpr int kLengthClasses = 64;
constexpr int kMostScheduled = 2048;  // sequences; larger batches are not sorted, since their load evens out

// Shared memory of a Schedule.
__host__ __device__ inline int schedule_bytes(int batch) {
  return batch <= kMostScheduled ? kLengthClasses * 4 + (2 * batch + 15) / 16 * 16 : 0;
}

// A part of the rows of one head of one sequence.
struct WorkItem {
  int sequence;
  int head;
  int part;
};

// The work items of each block. One warp of every block sorts the sequences by class of length, with a counting sort
// that has the same result in all blocks.
class Schedule {
 public:
  // All threads of the block call it. `memory`: schedule_bytes(batch) bytes of shared memory.
  __device__ Schedule(unsigned char* memory, const int32_t* cu_seqlens, int batch, int max_length, int num_heads,
                      int parts)
      : order_(reinterpret_cast<uint16_t*>(memory + kLengthClasses * 4)),
        num_heads_(num_heads),
        parts_(parts),
        num_items_(static_cast<int64_t>(batch) * num_heads * parts),
        sorted_(batch <= kMostScheduled && num_items_ > gridDim.x) {
    if (!sorted_) return;
    if (threadIdx.x < kWarpSize) sort(reinterpret_cast<int*>(memory), cu_seqlens, batch, max_length);
    __syncthreads();
  }

  // Stores the item of this block in `round`; returns false if there is none. Every other round goes through the blocks
  // in reverse, so that no block gets the longest item of every round.
  __device__ bool item(int round, WorkItem& result) const {
    const int64_t position = round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    const int64_t index = static_cast<int64_t>(round) * gridDim.x + position;
    if (index >= num_items_) return false;
    int rank;
    if (num_items_ <= 0x7fffffff) {  // because a 64-bit division takes a thousand clocks
      const uint32_t per_sequence = num_heads_ * parts_;
      const uint32_t rest = static_cast<uint32_t>(index) % per_sequence, parts = parts_;
      rank = static_cast<uint32_t>(index) / per_sequence;
      result.head = rest / parts;
      result.part = rest % parts;
    } else {
      const int64_t per_sequence = static_cast<int64_t>(num_heads_) * parts_;
      rank = static_cast<int>(index / per_sequence);
      const int64_t rest = index % per_sequence;
      result.head = static_cast<int>(rest / parts_);
      result.part = static_cast<int>(rest % parts_);
    }
    result.sequence = sorted_ ? order_[rank] : rank;
    return true;
  }

 private:
  // Fills order_, longest class first. `first`: [kLengthClasses] counts, then the next free place of each class.
  __device__ void sort(int* first, const int32_t* cu_seqlens, int batch, int max_length) {
    const int lane = threadIdx.x;
    const int width = max_length / kLengthClasses + 1;
    auto length_class = [&](int index) {
      const int length = __ldg(cu_seqlens + index + 1) - __ldg(cu_seqlens + index);
      return kLengthClasses - 1 - min(max(length / width, 0), kLengthClasses - 1);
    };
    first[lane] = first[lane + kWarpSize] = 0;
    __syncwarp();
    for (int index = lane; index < batch; index += kWarpSize) atomicAdd(first + length_class(index), 1);
    __syncwarp();
    // Exclusive sums of the counts, two classes a lane.
    const int even = first[2 * lane], pair = even + first[2 * lane + 1];
    int sum = pair;
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const int other = __shfl_sync(0xffffffffu, sum, max(lane - distance, 0));
      if (lane >= distance) sum += other;
    }
    __syncwarp();
    first[2 * lane] = sum - pair;
    first[2 * lane + 1] = sum - pair + even;
    __syncwarp();
    for (int base = 0; base < batch; base += kWarpSize) {
      const int index = base + lane;
      const int own = index < batch ? length_class(index) : -1;
      const uint32_t peers = __match_any_sync(0xffffffffu, own);
      const int rank = __popc(peers & ((1u << lane) - 1));
      const int position = own >= 0 ? first[own] + rank : 0;
      __syncwarp();
      if (own >= 0) {
        order_[position] = static_cast<uint16_t>(index);
        if (rank == 0) first[own] += __popc(peers);
      }
      __syncwarp();
    }
  }

  uint16_t* order_;
  int num_heads_;
  int parts_;
  int64_t num_items_;
  bool sorted_;
};

}  // namespace msvit::cuda
