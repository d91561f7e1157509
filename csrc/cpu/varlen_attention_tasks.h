// What forward and backward share: bounds of a sequence, the order of the work, memory for the threads.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "simd/pack.h"
#include "varlen_attention.h"

namespace msvit {
namespace MSVIT_ISA {

constexpr int64_t kMaxKeys = 256;  // keys of one block: scores of a row block stay in L1, packed keys in L2
constexpr int64_t kMaxHeadDim = 128;
constexpr double kSerialWork = 5e5;     // multiply-adds below which waking other threads costs more than it saves
constexpr int64_t kTasksPerThread = 4;  // enough to balance tasks of unequal cost when the longest start first

static_assert(kMaxKeys + kLanes <= kRowStride, "a row of scores must fit the row stride");

struct Span {
  int64_t begin, end;
  int64_t length() const { return end - begin; }
};

// Rows of sequence b, inside [0, total) whatever the offsets say.
inline Span sequence_span(const int32_t* cu_seqlens, int64_t b, int64_t total) {
  const int64_t begin = std::clamp<int64_t>(cu_seqlens[b], 0, total);
  return {begin, std::clamp<int64_t>(cu_seqlens[b + 1], begin, total)};
}

struct Task {
  int32_t sequence, head;
  int64_t begin, end;  // query rows (or keys) of the sequence, relative to its first
};

// Blocks of equal size, a multiple of `multiple`, at most `largest`: a function of n alone.
inline int64_t even_block(int64_t n, int64_t largest, int64_t multiple) {
  const int64_t blocks = std::max<int64_t>(1, (n + largest - 1) / largest);
  return std::max(multiple, round_up((n + blocks - 1) / blocks, multiple));
}

// Sequences, those with most work first. Equal ones keep their order, so the list is the same in every run.
template <class Args>
std::vector<int32_t> longest_first(const Args& a) {
  std::vector<int32_t> order(a.batch);
  for (int64_t b = 0; b < a.batch; ++b) order[b] = static_cast<int32_t>(b);
  const auto work = [&](int32_t b) {
    return sequence_span(a.cu_seqlens_q, b, a.total_q).length() * sequence_span(a.cu_seqlens_k, b, a.total_k).length();
  };
  std::stable_sort(order.begin(), order.end(), [&](int32_t x, int32_t y) { return work(x) > work(y); });
  return order;
}

template <class Args>
double multiply_adds(const Args& a) {
  double pairs = 0;
  for (int64_t b = 0; b < a.batch; ++b)
    pairs += static_cast<double>(sequence_span(a.cu_seqlens_q, b, a.total_q).length()) *
             sequence_span(a.cu_seqlens_k, b, a.total_k).length();
  return pairs * a.num_heads * a.head_dim * 2;
}

// Memory of the calling thread that lives until the next call: pages are touched once, not in every call.
class Workspace {
 public:
  ~Workspace() { std::free(memory_); }
  char* reserve(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = 0;
      memory_ = static_cast<char*>(std::aligned_alloc(kPage, round_up(bytes, kPage)));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = bytes;
    }
    return memory_;
  }

 private:
  static constexpr size_t kPage = 4096;
  char* memory_ = nullptr;
  size_t size_ = 0;
};

// Hands out cache-line aligned pieces; with a null base it only measures.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    char* p = base_ + used_;
    used_ += round_up(count * sizeof(T), 64);
    return base_ ? reinterpret_cast<T*>(p) : nullptr;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// Reads into the cache what comes next, a few rows at a time between the tiles of the current work: rows of one head
// lie far apart, which the hardware does not foresee.
class Prefetcher {
 public:
  explicit Prefetcher(int64_t row_bytes) : row_bytes_(row_bytes) {}
  void add(const void* first, int64_t stride_bytes, int64_t rows) {
    if (rows > 0) list_[streams_++] = {static_cast<const char*>(first), stride_bytes, rows};
    rows_ += rows;
  }
  // All rows within the next `calls` calls of operator().
  void spread_over(int64_t calls) { rows_per_call_ = static_cast<float>(rows_) / calls; }
  void operator()() {
    for (due_ += rows_per_call_; due_ >= 1.0f && current_ < streams_; due_ -= 1.0f) {
      Stream& s = list_[current_];
      const char* line = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(s.row) / 64 * 64);
      for (; line < s.row + row_bytes_; line += 64) __builtin_prefetch(line);
      s.row += s.stride;
      if (--s.rows == 0) ++current_;
    }
  }

 private:
  struct Stream {
    const char* row;
    int64_t stride, rows;
  };
  int64_t row_bytes_, rows_ = 0;
  float rows_per_call_ = 0.0f, due_ = 0.0f;
  int streams_ = 0, current_ = 0;
  Stream list_[8];
};

// run(task, the task that this thread runs after it or null, scratch of this thread) for every task, in the order of
// the list as threads become free. A task must not depend on another one. A thread takes up to largest_group neighbours
// of the list at once, fewer towards its end: heads of one sequence share pages, and cores that write to neighbouring
// heads of the same rows take the cache lines between them from each other.
template <class T, class Run>
void for_each_task(const std::vector<T>& tasks, int64_t largest_group, int num_threads, char* scratch,
                   size_t scratch_per_thread, Run run) {
  const int64_t n = static_cast<int64_t>(tasks.size());
  int64_t taken = 0;
  const auto work = [&](int thread) {
    int64_t i = 0, end = 0;
    const auto take = [&] {
      if (++i < end) return;
#pragma omp critical(msvit_varlen_attention_take)
      {
        i = taken;
        taken += std::clamp<int64_t>((n - taken) / (2 * num_threads), 1, largest_group);
        end = taken;
      }
    };
    for (take(); i < n;) {
      const T& task = tasks[i];
      take();
      run(task, i < n ? &tasks[i] : nullptr, scratch + thread * scratch_per_thread);
    }
  };
#ifdef _OPENMP
  if (num_threads > 1) {
#pragma omp parallel num_threads(num_threads)
    work(omp_get_thread_num());
    return;
  }
#endif
  work(0);
}

// The keys that take part: all, or those whose weight is not zero. index is null if that is all of them.
struct Keys {
  int64_t count;
  const int32_t* index;
};

inline Keys weighted_keys(const float* weight, int64_t n, int32_t* index) {
  if (weight == nullptr) return {n, nullptr};
  int64_t count = 0;
  for (int64_t j = 0; j < n; ++j) {
    index[count] = static_cast<int32_t>(j);
    count += !(weight[j] <= 0.0f);
  }
  return {count, count == n ? nullptr : index};
}

}  // namespace MSVIT_ISA
}  // namespace msvit
