// A stream through shared memory, in chunks, of the rows of two tensors of one sequence and of a few floats per row.
#pragma once

#include "sequences.cuh"
#include "tiles.cuh"
#include "varlen_attention.h"

namespace msvit::cuda {

constexpr int kRingChunks = 4;

// Loads rows a and b, [length, D], and Numbers::NUMBERS floats per row, CHUNK rows at a time. RESIDENT: shared memory
// holds all chunks of the sequence, and each is waited for once; otherwise it holds a ring of kRingChunks.
// Numbers::value(which, row) gives the floats; it is called for rows beyond the sequence too. If Numbers::CLEARS, rows
// for which Numbers::clears(row) become zeros.
template <int D, int CHUNK, int THREADS, bool RESIDENT, class Numbers>
class RowStream {
 public:
  // In 64 bits, because the host calls it with any length to find out whether that fits.
  static __host__ __device__ int64_t shared_bytes(int max_length) {
    return 2 * rows(max_length) * Tile<D>::kRowBytes + Numbers::NUMBERS * number_stride(max_length) * 4;
  }

  __device__ RowStream(unsigned char* memory, int max_length, int head_dim)
      : a_(shared_address(memory)),
        b_(a_ + static_cast<uint32_t>(rows(max_length)) * Tile<D>::kRowBytes),
        numbers_(reinterpret_cast<float*>(memory + 2 * rows(max_length) * Tile<D>::kRowBytes)),
        number_stride_(static_cast<int>(number_stride(max_length))),
        head_dim_(head_dim) {}

  // Starts to load the chunks that fit. All threads call it, after all have finished with the sequence before.
  __device__ __forceinline__ void start(const Rows& a, const Rows& b, const Sequence& sequence, int head,
                                        const Numbers& source) {
    source_ = source;
    length_ = sequence.length;
    stride_a_ = a.token_stride, stride_b_ = b.token_stride;
    rows_a_ = rows_of(a, sequence.start, head);
    rows_b_ = rows_of(b, sequence.start, head);
    num_chunks_ = (length_ + CHUNK - 1) / CHUNK;
    started_ = RESIDENT ? num_chunks_ : min(num_chunks_, kRingChunks - 1);
    for (int chunk = 0; chunk < started_; ++chunk) load(chunk);
#pragma unroll
    for (int which = 0; which < Numbers::NUMBERS; ++which) {
      for (int row = threadIdx.x; row < started_ * CHUNK; row += THREADS)
        numbers_[which * number_stride_ + row] = source_.value(which, row);
      if (!RESIDENT && threadIdx.x < CHUNK) next_[which] = source_.value(which, started_ * CHUNK + threadIdx.x);
    }
  }

  // Waits for a chunk and makes it visible to all threads. In a ring, also starts to load another chunk in place of the
  // one before `chunk`. All threads call it, for each chunk in turn.
  __device__ __forceinline__ void arrive(int chunk) {
    if constexpr (Numbers::CLEARS) {
      const uint32_t cleared = cleared_pieces(chunk);  // before waiting, so that its loads overlap with the copies
      copy_async_wait_for_all_but(started_ - 1 - chunk);
      if (cleared != 0) clear(chunk, cleared);
    } else {
      copy_async_wait_for_all_but(started_ - 1 - chunk);
    }
    __syncthreads();
    if (RESIDENT || started_ == num_chunks_) return;
    load(started_);
    if (threadIdx.x < CHUNK) {
#pragma unroll
      for (int which = 0; which < Numbers::NUMBERS; ++which) {
        numbers_[which * number_stride_ + started_ % kRingChunks * CHUNK + threadIdx.x] = next_[which];
        next_[which] = source_.value(which, (started_ + 1) * CHUNK + threadIdx.x);
      }
    }
    ++started_;
  }

  __device__ __forceinline__ int num_chunks() const { return num_chunks_; }
  // Number of rows from the beginning of the chunk to the end of the sequence.
  __device__ __forceinline__ int remaining(int chunk) const { return length_ - chunk * CHUNK; }
  // Places of a chunk in shared memory: tiles [CHUNK, D] of a and b, and floats [CHUNK].
  __device__ __forceinline__ uint32_t a(int chunk) const { return a_ + slot(chunk) * CHUNK * Tile<D>::kRowBytes; }
  __device__ __forceinline__ uint32_t b(int chunk) const { return b_ + slot(chunk) * CHUNK * Tile<D>::kRowBytes; }
  __device__ __forceinline__ const float* numbers(int which, int chunk) const {
    return numbers_ + which * number_stride_ + slot(chunk) * CHUNK;
  }

 private:
  static __host__ __device__ int64_t rows(int max_length) {
    return RESIDENT ? (static_cast<int64_t>(max_length) + 15) / 16 * 16 : kRingChunks * CHUNK;
  }
  static __host__ __device__ int64_t number_stride(int max_length) {
    return (rows(max_length) + CHUNK - 1) / CHUNK * CHUNK;
  }
  __device__ __forceinline__ int slot(int chunk) const { return RESIDENT ? chunk : chunk % kRingChunks; }

  __device__ __forceinline__ void load(int chunk) {
    const int valid = remaining(chunk);
    const int rows = min(CHUNK, (valid + 15) / 16 * 16);
    copy_rows_async<D, THREADS>(a(chunk), rows_a_ + chunk * CHUNK * stride_a_, stride_a_, rows, valid, head_dim_);
    copy_rows_async<D, THREADS>(b(chunk), rows_b_ + chunk * CHUNK * stride_b_, stride_b_, rows, valid, head_dim_);
    copy_async_commit();
  }

  // The pieces of 16 bytes that this thread has copied of each tensor, as `copy_rows_async` divides a chunk, are a bit
  // each: 1 if the row counts as zero.
  static constexpr int kPieces = (CHUNK * Tile<D>::kChunks + THREADS - 1) / THREADS;
  static_assert(kPieces <= 32);

  __device__ __forceinline__ uint32_t cleared_pieces(int chunk) const {
    const int valid = min(remaining(chunk), CHUNK);
    uint32_t cleared = 0;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const int row = (piece * THREADS + threadIdx.x) / Tile<D>::kChunks;
      if (row < valid && source_.clears(chunk * CHUNK + row)) cleared |= 1u << piece;
    }
    return cleared;
  }

  __device__ __forceinline__ void clear(int chunk, uint32_t cleared) {
#pragma unroll 1
    for (int piece = 0; piece < kPieces; ++piece) {
      if (!(cleared >> piece & 1)) continue;
      const int index = piece * THREADS + threadIdx.x;
      const uint32_t place = Tile<D>::offset(index / Tile<D>::kChunks, index % Tile<D>::kChunks);
      for (int i = 0; i < 4; ++i) {
        const int word = (i + threadIdx.x / 8) % 4;  // the 32 lanes of a warp write to 32 banks
        store_shared_32(a(chunk) + place + 4 * word, 0);
        store_shared_32(b(chunk) + place + 4 * word, 0);
      }
    }
  }

  uint32_t a_, b_;
  float* numbers_;
  int number_stride_, head_dim_;
  Numbers source_;
  int length_ = 0, num_chunks_ = 0, started_ = 0;
  int64_t stride_a_ = 0, stride_b_ = 0;
  const uint16_t *rows_a_ = nullptr, *rows_b_ = nullptr;
  float next_[Numbers::NUMBERS > 0 ? Numbers::NUMBERS : 1];
};

// Numbers of a stream of keys and values: log2 of the weight of each key, -inf beyond the sequence. Keys of weight 0
// become zeros, because NaN or infinity in them times a probability of 0 would be NaN.
struct KeyBias {
  static constexpr int NUMBERS = 1;
  static constexpr bool CLEARS = true;
  const float* weight;  // of the first key of the sequence, or null for all ones
  int length;

  __device__ __forceinline__ float value(int, int row) const {
    if (row >= length) return -INFINITY;
    return weight == nullptr ? 0 : log2_weight(__ldg(weight + row));
  }
  __device__ __forceinline__ bool clears(int row) const { return weight != nullptr && __ldg(weight + row) <= 0; }
};

// For a stream of rows alone.
struct NoNumbers {
  static constexpr int NUMBERS = 0;
  static constexpr bool CLEARS = false;
  __device__ __forceinline__ float value(int, int) const { return 0; }
};

}  // namespace msvit::cuda
