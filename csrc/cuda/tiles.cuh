// Tiles of rows: global memory to shared memory, to the registers that `mma` wants, and back.
//
// A fragment [16, D] of a warp is an array [D / 8] of columns blocks; lane l holds of each block rows l / 4 and l / 4 +
// 8, columns 2 (l % 4) and the next: the layout of the accumulator of `mma`, and in pairs of blocks that of its operand
// a.
#pragma once

#include "cuda/device_code.cuh"

namespace msvit::cuda {

constexpr int kWarpSize = 32;
constexpr int kRowsPerFragment = 16;

// Shared memory: rows of D elements, 16-byte chunks permuted so that eight rows of one column of chunks lie in
// different banks.
template <int D>
struct Tile {
  static_assert(D % 32 == 0, "the permutation needs rows of 64 bytes or more");
  static constexpr int kChunks = D / 8;
  static constexpr int kRowBytes = 2 * D;
  static constexpr int kShift = D % 64 == 0 ? 0 : 1;
  static constexpr int kMask = D % 64 == 0 ? 7 : 3;

  __device__ static __forceinline__ uint32_t offset(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ ((row >> kShift) & kMask)) << 4);
  }
};

// Starts to copy rows [0, num_rows) by all threads of the block; zeros from `valid_rows` and from `head_dim` on.
template <int D, int THREADS>
__device__ __forceinline__ void copy_rows_async(uint32_t tile, const uint16_t* rows, int64_t stride, int num_rows,
                                                int valid_rows, int head_dim) {
  constexpr int kChunks = Tile<D>::kChunks;
  if constexpr (THREADS % kChunks == 0) {
    // A thread stays in one column of chunks, and at a distance of so many rows the permutation is the same.
    constexpr int kStep = THREADS / kChunks;
    static_assert(kStep % ((Tile<D>::kMask + 1) << Tile<D>::kShift) == 0);
    const int first = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    const int valid = chunk * 8 < head_dim ? valid_rows : 0;
    uint32_t target = tile + Tile<D>::offset(first, chunk);
    const uint16_t* source = rows + first * stride + chunk * 8;
#pragma unroll 1
    for (int row = first; row < num_rows; row += kStep, target += kStep * Tile<D>::kRowBytes, source += kStep * stride)
      copy_async_16(target, source, row < valid);
  } else {
#pragma unroll 1  // the addresses of several rows in flight would take the registers of the products
    for (int i = threadIdx.x; i < num_rows * kChunks; i += THREADS) {
      const int row = i / kChunks, chunk = i % kChunks;
      const bool valid = row < valid_rows && chunk * 8 < head_dim;
      copy_async_16(tile + Tile<D>::offset(row, chunk), valid ? rows + row * stride + chunk * 8 : rows, valid);
    }
  }
}

// Operand b of two neighbouring [16, 8] products, from rows of the transposed matrix: rows [first_row, first_row + 16)
// are the columns of both products, chunks 2 step and 2 step + 1 their 16 rows. b[0..1] and b[2..3] are the pairs.
template <int D>
__device__ __forceinline__ void load_b_from_columns(uint32_t (&b)[4], uint32_t tile, int first_row, int step) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = first_row + (lane / 16) * 8 + lane % 8;
  load_matrices(b, tile + Tile<D>::offset(row, 2 * step + (lane / 8) % 2));
}

// The same from rows of the matrix: rows [first_row, first_row + 16), chunks 2 step and 2 step + 1 are the columns.
template <int D>
__device__ __forceinline__ void load_b_from_rows(uint32_t (&b)[4], uint32_t tile, int first_row, int step) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = first_row + lane % 16;
  load_matrices_transposed(b, tile + Tile<D>::offset(row, 2 * step + lane / 16));
}

// Operand a, [16, 16]: rows [first_row, first_row + 16), chunks 2 step and 2 step + 1.
template <int D>
__device__ __forceinline__ void load_a_from_rows(uint32_t (&a)[4], uint32_t tile, int first_row, int step) {
  const int lane = threadIdx.x % kWarpSize;
  load_matrices(a, tile + Tile<D>::offset(first_row + lane % 16, 2 * step + lane / 16));
}

// The same from the transposed matrix: its rows [first_row, first_row + 16) are the columns of the operand, its chunks
// 2 step and 2 step + 1 the rows.
template <int D>
__device__ __forceinline__ void load_a_from_columns(uint32_t (&a)[4], uint32_t tile, int first_row, int step) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = first_row + (lane / 16) * 8 + lane % 8;
  load_matrices_transposed(a, tile + Tile<D>::offset(row, 2 * step + (lane / 8) % 2));
}

// Blocks 2 i and 2 i + 1 of an accumulator as operand a.
template <class T>
__device__ __forceinline__ void pack_operand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pack<T>(left[0], left[1]);
  a[1] = pack<T>(left[2], left[3]);
  a[2] = pack<T>(right[0], right[1]);
  a[3] = pack<T>(right[2], right[3]);
}

// Reads operand a for rows [0, 16) of D elements straight from global memory; zeros from `valid_rows` and `head_dim`
// on. Two neighbouring lanes read 16 bytes of each of two blocks and swap halves, so that whole sectors are read.
template <int D>
__device__ __forceinline__ void load_operand(uint32_t (&a)[D / 16][4], const uint16_t* rows, int64_t stride,
                                             int valid_rows, int head_dim) {
  const int lane = threadIdx.x % kWarpSize;
  const int odd = lane % 2, column = 8 * odd + 4 * (lane % 4 / 2);
  // All loads before the first shuffle, which would wait for those before it.
  uint2 words[2][D / 16];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    const uint16_t* source = rows + row * stride + column;
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      words[half][step] = make_uint2(0, 0);
      if (row < valid_rows && 16 * step + 8 * odd < head_dim)
        words[half][step] = __ldg(reinterpret_cast<const uint2*>(source + 16 * step));
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      const uint2 own = words[half][step];
      const uint32_t swapped = __shfl_xor_sync(0xffffffffu, odd ? own.x : own.y, 1);
      a[step][half] = odd ? swapped : own.x;
      a[step][2 + half] = odd ? own.y : swapped;
    }
  }
}

// Writes factor[row] * fragment as 16-bit rows [0, valid_rows) to global memory, the reverse of `load_operand`.
template <class T, int D>
__device__ __forceinline__ void store_fragment(uint16_t* rows, int64_t stride, const float (&fragment)[D / 8][4],
                                               const float (&factor)[2], int valid_rows, int head_dim) {
  const int lane = threadIdx.x % kWarpSize;
  const int odd = lane % 2, column = 8 * odd + 4 * (lane % 4 / 2);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = lane / 4 + 8 * half;
    uint16_t* target = rows + row * stride + column;
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      const float (&left)[4] = fragment[2 * step];
      const float (&right)[4] = fragment[2 * step + 1];
      const uint32_t first = pack<T>(factor[half] * left[2 * half], factor[half] * left[2 * half + 1]);
      const uint32_t second = pack<T>(factor[half] * right[2 * half], factor[half] * right[2 * half + 1]);
      const uint32_t swapped = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
      if (row < valid_rows && 16 * step + 8 * odd < head_dim)
        *reinterpret_cast<uint2*>(target + 16 * step) = odd ? make_uint2(swapped, second) : make_uint2(first, swapped);
    }
  }
}

// sums[f] += a[f] b for the first N fragments: b is rows [first_row, first_row + 16) of the tile, all D columns.
template <class T, int D, int M, int N>
__device__ __forceinline__ void add_product(float (&sums)[M][D / 8][4], const uint32_t (&a)[N][4], uint32_t tile,
                                            int first_row) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t b[4];
    load_b_from_rows<D>(b, tile, first_row, step);
#pragma unroll
    for (int f = 0; f < N; ++f) {
      mma<T>(sums[f][2 * step], a[f], b[0], b[1]);
      mma<T>(sums[f][2 * step + 1], a[f], b[2], b[3]);
    }
  }
}

// Scalar product of two pairs of elements.
template <class T>
__device__ __forceinline__ float dot(uint32_t x, uint32_t y) {
  const float2 left = unpack<T>(x), right = unpack<T>(y);
  return left.x * right.x + left.y * right.y;
}

// Sum and maximum over the four lanes that share a row.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Waits until at most `pending` of this thread's newest groups of copies are not complete; waits for more beyond 3.
__device__ __forceinline__ void copy_async_wait_for_all_but(int pending) {
  if (pending >= 3) {
    copy_async_wait<3>();
  } else if (pending == 2) {
    copy_async_wait<2>();
  } else if (pending == 1) {
    copy_async_wait<1>();
  } else {
    copy_async_wait<0>();
  }
}

}  // namespace msvit::cuda
