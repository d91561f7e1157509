// What a parallel region needs: how many threads, which one is running, and working memory for each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace msvit {
namespace MSVIT_ISA {

inline int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Threads for `work` units of which one thread should do at least `per_thread`: starting one costs microseconds.
inline int threads_for(int64_t work, int64_t per_thread, int num_threads) {
  const int64_t useful = work / per_thread + 1;
  return useful < num_threads ? static_cast<int>(useful) : num_threads;
}

// One slice per thread, cut from a single allocation made before the region: running out of memory inside a region
// could not be reported. Slices start on cache lines of their own.
template <class T>
class Scratch {
 public:
  Scratch(int num_threads, int64_t elements)
      : stride_((elements + kLineElements - 1) / kLineElements * kLineElements + kLineElements),
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

}  // namespace MSVIT_ISA
}  // namespace msvit
