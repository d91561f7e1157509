// Host side of every launch: selects the device of the call, permits shared memory above 48 KB, and turns CUDA errors
// into exceptions. Answers of the CUDA runtime are cached, because asking several times takes longer than a
// launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

namespace msvit::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Makes a device the current one for its lifetime.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    changed_ = previous_ != device;
    if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// Cache of answers of the CUDA runtime, for several threads.
template <class Question>
class Answers {
 public:
  template <class Ask>
  int get(const Question& question, const Ask& ask) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = known_.find(question);
    if (found != known_.end()) return found->second;
    const int answer = ask();
    if (known_.size() == kMost) known_.clear();
    return known_[question] = answer;
  }

 private:
  static constexpr size_t kMost = 4096;
  std::mutex mutex_;
  std::map<Question, int> known_;
};

inline int device_attribute(cudaDeviceAttr attribute, int device) {
  using Question = std::tuple<int, int>;
  static Answers<Question> answers;
  return answers.get({attribute, device}, [&] {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
    return value;
  });
}

inline int num_multiprocessors(int device) { return device_attribute(cudaDevAttrMultiProcessorCount, device); }

inline int shared_memory_limit(int device) { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device); }

// Number of blocks of `kernel` that run at the same time on one multiprocessor of `device`, which is the current
// device. Raises the kernel's limit of shared memory to the most that a block may have. A limit of what this call needs
// could be too small for another thread that has called this function and not yet launched.
template <class Params>
int resident_blocks(void (*kernel)(Params), int device, int threads, int shared_bytes) {
  using Question = std::tuple<const void*, int, int, int>;
  static Answers<Question> answers;
  const void* const address = reinterpret_cast<const void*>(kernel);
  return answers.get({address, device, threads, shared_bytes}, [&] {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, address), "cudaFuncGetAttributes");
    const int most = shared_memory_limit(device) - static_cast<int>(attributes.sharedSizeBytes);
    check(cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "shared memory");
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, address, threads, shared_bytes), "occupancy");
    if (blocks == 0) throw std::runtime_error("a block with so much shared memory does not fit this GPU");
    return blocks;
  });
}

// Starts kernel(params). `resident_blocks` has to be called before, with the same shared memory.
template <class Params>
void launch(void (*kernel)(Params), int blocks, int threads, int shared_bytes, uintptr_t stream, const Params& params) {
  void* arguments[] = {const_cast<Params*>(&params)};
  check(cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), arguments, shared_bytes,
                         reinterpret_cast<cudaStream_t>(stream)),
        "kernel launch");
}

}  // namespace msvit::cuda
