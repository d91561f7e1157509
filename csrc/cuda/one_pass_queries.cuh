// The backward of short sequences in one kernel: the work of a warp on its queries and a chunk of keys.
#pragma once

#include "sequences.cuh"
#include "tiles.cuh"
#include "varlen_attention.h"

namespace msvit::cuda {

// The queries of a warp, up to FRAGMENTS neighbouring tiles of 16 rows, with their dq in registers.
template <class Traits>
class OnePassQueries {
  using T = typename Traits::T;
  static constexpr int D = Traits::D, FRAGMENTS = Traits::FRAGMENTS;
  static constexpr bool HELD = Traits::kQueriesInRegisters;
  static constexpr float kLeastDivisor = -60;  // log2 of the least weight to divide by: below it P underflows before P~

 public:
  // Takes `active` tiles from row `begin` of the tiles q and dout on, with their lse and delta; sets dq to zero.
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

  // Computes P and dS of the first ACTIVE fragments and the first `valid` keys of a chunk, stores them to the tiles `p`
  // and `ds`, and adds dS k to dq. If `dweight` is not null, stores this warp's sums of P~ g over queries, [CHUNK],
  // there.
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
      const int column = 16 * group + 2 * (lane % 4);
      const float2 log_weights[2] = {*reinterpret_cast<const float2*>(bias + column),
                                     *reinterpret_cast<const float2*>(bias + column + 8)};
      // P~ = P / w saves half of the exponentials, if no weight of the 16 keys is near 0.
      bool divides = false;
      float sums[4] = {};
      if (dweight != nullptr) {
        divides = __ballot_sync(0xffffffffu, fminf(fminf(log_weights[0].x, log_weights[0].y),
                                                   fminf(log_weights[1].x, log_weights[1].y)) >= kLeastDivisor) ==
                  0xffffffffu;
        if (!divides) {
#pragma unroll
          for (int f = 0; f < ACTIVE; ++f)
#pragma unroll
            for (int block = 0; block < 2; ++block)
#pragma unroll
              for (int i = 0; i < 4; ++i)
                sums[2 * block + i % 2] +=
                    exp2_times(s[f][block][i] * scale - lse_[f][i / 2], dp[f][block][i] - delta_[f][i / 2]);
        }
      }
      // A key of weight 0 may hold NaN or infinity, which times 0 would be NaN. Its product with any row shows it.
      float products = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((i % 2 ? log_weights[i / 2].y : log_weights[i / 2].x) == -INFINITY)
          products += fabsf(s[0][i / 2][i % 2]) + fabsf(dp[0][i / 2][i % 2]);
      }
      const bool redirects = __ballot_sync(0xffffffffu, !(products < INFINITY)) != 0;
      if (redirects) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if ((i % 2 ? log_weights[i / 2].y : log_weights[i / 2].x) != -INFINITY) continue;
#pragma unroll
          for (int f = 0; f < ACTIVE; ++f)
            for (int half = 0; half < 2; ++half) s[f][i / 2][i % 2 + 2 * half] = dp[f][i / 2][i % 2 + 2 * half] = 0;
        }
      }
      // From here on s holds P and dp holds dS.
#pragma unroll
      for (int block = 0; block < 2; ++block) {
#pragma unroll
        for (int f = 0; f < ACTIVE; ++f) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float log_weight = i % 2 ? log_weights[block].y : log_weights[block].x;
            s[f][block][i] = exp2_approx(s[f][block][i] * scale - lse_[f][i / 2] + log_weight);
            dp[f][block][i] = s[f][block][i] * (dp[f][block][i] - delta_[f][i / 2]);
          }
        }
      }
      if (dweight != nullptr) {
        if (divides) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int f = 0; f < ACTIVE; ++f) sums[i] += dp[f][i / 2][i % 2] + dp[f][i / 2][i % 2 + 2];
            sums[i] = exp2_times(-(i % 2 ? log_weights[i / 2].y : log_weights[i / 2].x), sums[i]);
          }
        }
        store_column_sums(dweight + 16 * group, sums);
      }
      uint32_t a[ACTIVE][4];
#pragma unroll
      for (int f = 0; f < ACTIVE; ++f) {
        pack_operand<T>(a[f], s[f][0], s[f][1]);
        store_operand(p, f, group, a[f]);
        pack_operand<T>(a[f], dp[f][0], dp[f][1]);
        store_operand(ds, f, group, a[f]);
      }
      // Which of the two forms leaves ptxas enough registers depends on FRAGMENTS and D.
      if (FRAGMENTS > 1 && D < 128 && !redirects) {
        add_product<T, D>(dq_, a, k, 16 * group);
      } else {
        const int own_row = redirects ? row_with_weight(bias + 16 * group) : threadIdx.x % 16;
        if (own_row >= 0) add_product<T, D>(dq_, a, k, 16 * group, own_row);
      }
    }
  }

  // Stores scale * dq to the rows of the sequence, of which there are `length`.
  __device__ __forceinline__ void store(uint16_t* rows, int64_t stride, float scale, int length, int head_dim) const {
#pragma unroll
    for (int f = 0; f < FRAGMENTS; ++f) {
      if (f < active_)
        store_fragment<T, D>(rows + first_row(f) * stride, stride, dq_[f], {scale, scale}, length - first_row(f),
                             head_dim);
    }
  }

 private:
  // The row of 16 that this lane reads of operand b: its own if the key has weight, else that of another key that has,
  // for a product with 0; -1 if none of the keys has.
  __device__ __forceinline__ static int row_with_weight(const float* bias) {
    const int own = threadIdx.x % 16;
    const bool hidden = bias[own] == -INFINITY;
    const uint32_t others = __ballot_sync(0xffffffffu, !hidden);
    return !hidden ? own : others == 0 ? -1 : __popc((others & -others) - 1);
  }

  __device__ __forceinline__ int first_row(int f) const { return begin_ + f * kRowsPerFragment; }

  // Operand a of fragment f: from registers if they hold it, else from shared memory.
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

  // Stores sums over rows of 16 columns. The eight lanes with the same lane % 4 hold parts of the same four columns,
  // 2 (lane % 4), the next, and both of these + 8; in each exchange a lane gives away half of its sums.
  __device__ __forceinline__ void store_column_sums(float* target, const float (&sums)[4]) {
    const int lane = threadIdx.x % kWarpSize;
    const bool second = lane & 4, odd = lane & 8;
    const float even_sum = (second ? sums[2] : sums[0]) + __shfl_xor_sync(0xffffffffu, second ? sums[0] : sums[2], 4);
    const float odd_sum = (second ? sums[3] : sums[1]) + __shfl_xor_sync(0xffffffffu, second ? sums[1] : sums[3], 4);
    float sum = (odd ? odd_sum : even_sum) + __shfl_xor_sync(0xffffffffu, odd ? even_sum : odd_sum, 8);
    sum += __shfl_xor_sync(0xffffffffu, sum, 16);
    if (lane < 16) target[2 * (lane % 4) + (second ? 8 : 0) + (odd ? 1 : 0)] = sum;
  }

  // Stores operand a to a tile of scores: rows of fragment f, columns of a group of 16 keys.
  __device__ __forceinline__ void store_operand(uint32_t tile, int f, int group, const uint32_t (&a)[4]) {
    const int lane = threadIdx.x % kWarpSize;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row(f) + lane / 4 + 8 * (i % 2);
      store_shared_32(tile + Tile<Traits::CHUNK>::offset(row, 2 * group + i / 2) + 4 * (lane % 4), a[i]);
    }
  }

  uint32_t q_ = 0, dout_ = 0;
  int begin_ = 0, active_ = 0;  // first row; number of tiles
  uint32_t held_q_[FRAGMENTS][HELD ? D / 16 : 1][4], held_dout_[FRAGMENTS][HELD ? D / 16 : 1][4];
  float dq_[FRAGMENTS][D / 8][4];
  float lse_[FRAGMENTS][2], delta_[FRAGMENTS][2];
};

}  // namespace msvit::cuda
