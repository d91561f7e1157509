// Parallel regions: the number of threads, memory for each thread, the distribution of tasks, and prefetches.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "simd/vec.h"

namespace msvit {
namespace MSVIT_ISA {

// ---- threads

inline int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Threads for `work` units, so that each does about `per_thread` or more: starting a thread costs microseconds.
inline int threads_for(int64_t work, int64_t per_thread, int num_threads) {
  const int64_t useful = work / per_thread + 1;
  return useful < num_threads ? static_cast<int>(useful) : num_threads;
}

// ---- memory

// One slice per thread, cut from one allocation. It is made before the parallel region, because an exception cannot
// leave the region. Slices share no cache line.
template <class T>
class Scratch {
 public:
  Scratch(int num_threads, int64_t elements)
      : stride_(round_up(elements, kLineElements) + kLineElements),
        data_(static_cast<T*>(::operator new(stride_ * num_threads * sizeof(T), kLine))) {}
  ~Scratch() { ::operator delete(data_, kLine); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* of_thread() const { return data_ + stride_ * thread_index(); }
  T* shared() const { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  static constexpr int64_t kLineElements = 64 / sizeof(T);
  int64_t stride_;
  T* data_;
};

// Memory that the calling thread keeps for its next call, so that its pages are mapped once and not in every call.
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

// Divides memory into pieces that start on cache lines. With a null base it only measures.
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

// ---- tasks

// Calls run(task, next, memory) for every task: `next` is the task that the same thread runs afterwards or null,
// `memory` is the thread's piece of `scratch`. Free threads take tasks in the order of the list. Tasks must not depend
// on one another. A thread takes up to largest_group neighbours at once, fewer towards the end of the list: the heads
// of one sequence share pages, and cores that write neighbouring heads of the same rows compete for the cache lines
// between them.
template <class T, class Run>
void for_each_task(const std::vector<T>& tasks, int64_t largest_group, int num_threads, char* scratch,
                   size_t scratch_per_thread, Run run) {
  const int64_t n = static_cast<int64_t>(tasks.size());
  int64_t taken = 0;
  // Not a critical section: there is one in a process, and a child of fork() could inherit it in the locked state.
  std::mutex taking;
  const auto work = [&](int thread) {
    int64_t i = 0, end = 0;
    const auto take = [&] {
      if (++i < end) return;
      const std::lock_guard lock(taking);
      i = taken;
      taken += std::clamp<int64_t>((n - taken) / (2 * num_threads), 1, largest_group);
      end = taken;
    };
    take();
    while (i < n) {
      const T& task = tasks[i];
      take();
      run(task, i < n ? &tasks[i] : nullptr, scratch + thread * scratch_per_thread);
    }
  };
#ifdef _OPENMP
  if (num_threads > 1) {
#pragma omp parallel num_threads(num_threads)
    work(thread_index());
    return;
  }
#endif
  work(0);
}

// ---- prefetches

// Prefetches the rows that are needed next, a few at a time between the tiles of the current work. The rows of one head
// lie far apart, which the hardware's prefetcher does not foresee.
class Prefetcher {
 public:
  explicit Prefetcher(int64_t row_bytes) : row_bytes_(row_bytes) {}
  void add(const void* first, int64_t stride_bytes, int64_t rows) {
    if (rows > 0) list_[streams_++] = {static_cast<const char*>(first), stride_bytes, rows};
    rows_ += rows;
  }
  // Spreads all rows over the next `calls` calls of operator().
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

}  // namespace MSVIT_ISA
}  // namespace msvit
