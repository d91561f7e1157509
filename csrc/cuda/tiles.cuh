// Movement of tiles of rows: from global to shared memory, from there to registers in the layouts of `mma`, and back.
//
// A fragment [16, D] of a warp consists of D / 8 blocks of eight columns. Of each block, lane l holds rows l / 4 and
// l / 4 + 8, columns 2 (l % 4) and the next. This is the layout of mma's accumulator; two blocks side by side have the
// layout of its operand a.
#pragma once

#include "cuda/device_code.cuh"

namespace msvit::cuda {

constexpr int kWarpSize = 32;
constexpr int kRowsPerFragment = 16;

// Layout of a tile in shared memory: rows of D elements, each cut into chunks of 16 bytes. The chunks of a row are
// permuted so that the same chunk of eight neighbouring rows lies in different banks.
template <int D>
struct Tile {
  static_assert(D % 32 == 0, "the permutation needs rows of 64 bytes or more");
  static constexpr int kChunks = D / 8;
  static constexpr int kRowBytes = 2 * D;
  static constexpr int kShift = D % 64 == 0 ? 0 : 1;
  static constexpr int kMask = D % 64 == 0 ? 7 : 3;

  // Bytes from the beginning of the tile to a chunk.
  __device__ static __forceinline__ uint32_t offset(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ ((row >> kShift) & kMask)) << 4);
  }
};

// Starts to copy rows [0, num_rows) to a tile, with all threads of the block. Rows from `valid_rows` on and columns
// from `head_dim` on become zeros.
template <int D, int THREADS>
__device__ __forceinline__ void copy_rows_async(uint32_t tile, const uint16_t* rows, int64_t stride, int num_rows,
                                                int valid_rows, int head_dim) {
  constexpr int kChunks = Tile<D>::kChunks;
  if constexpr (THREADS % kChunks == 0) {
    // A thread copies one chunk of every kStep-th row; the permutation repeats at this distance.
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

// Loads operand b of two mma, [16, 16] in all, from a tile that holds b transposed: b's columns are rows [first_row,
// first_row + 16) of the tile, b's rows its chunks 2 step and 2 step + 1. b[0..1] and b[2..3] are the two operands.
template <int D>
__device__ __forceinline__ void load_b_from_columns(uint32_t (&b)[4], uint32_t tile, int first_row, int step) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = first_row + (lane / 16) * 8 + lane % 8;
  load_matrices(b, tile + Tile<D>::offset(row, 2 * step + (lane / 8) % 2));
}

// Loads operand b of two mma, [16, 16] in all, from a tile that holds b: rows [first_row, first_row + 16), chunks 2
// step and 2 step + 1. Lane l asks for row l % 16, or for `own_row` in its place.
template <int D>
__device__ __forceinline__ void load_b_from_rows(uint32_t (&b)[4], uint32_t tile, int first_row, int step,
                                                 int own_row) {
  load_matrices_transposed(b, tile + Tile<D>::offset(first_row + own_row, 2 * step + threadIdx.x % kWarpSize / 16));
}
template <int D>
__device__ __forceinline__ void load_b_from_rows(uint32_t (&b)[4], uint32_t tile, int first_row, int step) {
  load_b_from_rows<D>(b, tile, first_row, step, threadIdx.x % 16);
}

// Loads operand a, [16, 16], from a tile that holds a: rows [first_row, first_row + 16), chunks 2 step and 2 step + 1.
template <int D>
__device__ __forceinline__ void load_a_from_rows(uint32_t (&a)[4], uint32_t tile, int first_row, int step) {
  const int lane = threadIdx.x % kWarpSize;
  load_matrices(a, tile + Tile<D>::offset(first_row + lane % 16, 2 * step + lane / 16));
}

// Loads operand a, [16, 16], from a tile that holds a transposed: a's columns are rows [first_row, first_row + 16) of
// the tile, a's rows its chunks 2 step and 2 step + 1.
template <int D>
__device__ __forceinline__ void load_a_from_columns(uint32_t (&a)[4], uint32_t tile, int first_row, int step) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = first_row + (lane / 16) * 8 + lane % 8;
  load_matrices_transposed(a, tile + Tile<D>::offset(row, 2 * step + (lane / 8) % 2));
}

// Two neighbouring blocks of an accumulator, rounded, as operand a, [16, 16].
template <class T>
__device__ __forceinline__ void pack_operand(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pack<T>(left[0], left[1]);
  a[1] = pack<T>(left[2], left[3]);
  a[2] = pack<T>(right[0], right[1]);
  a[3] = pack<T>(right[2], right[3]);
}

// Loads rows [0, 16) of D elements from global memory as D / 16 operands a. Rows from `valid_rows` on and columns from
// `head_dim` on become zeros. A lane reads 8 bytes of a row and swaps half of them with its neighbour, so that the four
// lanes of a row read a whole sector of 32 bytes.
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

// Stores factor[row] * fragment, [16, D], as 16-bit rows [0, valid_rows) to global memory: the reverse of
// `load_operand`.
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

// sums[f] += a[f] b for the first N of M fragments [16, D], with b [16, D] the rows [first_row, first_row + 16) of a
// tile, or `own_row` of each lane in place of its row.
template <class T, int D, int M, int N>
__device__ __forceinline__ void add_product(float (&sums)[M][D / 8][4], const uint32_t (&a)[N][4], uint32_t tile,
                                            int first_row, int own_row) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t b[4];
    load_b_from_rows<D>(b, tile, first_row, step, own_row);
#pragma unroll
    for (int f = 0; f < N; ++f) {
      mma<T>(sums[f][2 * step], a[f], b[0], b[1]);
      mma<T>(sums[f][2 * step + 1], a[f], b[2], b[3]);
    }
  }
}

template <class T, int D, int M, int N>
__device__ __forceinline__ void add_product(float (&sums)[M][D / 8][4], const uint32_t (&a)[N][4], uint32_t tile,
                                            int first_row) {
  add_product<T, D>(sums, a, tile, first_row, threadIdx.x % 16);
}

// Scalar product of two pairs of elements, in fp32.
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

// Waits until at most min(pending, 3) of this thread's groups of copies are incomplete.
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
