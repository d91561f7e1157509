// The CUDA runtime of the shadow headers.
#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"
#include "devices.h"
#include "shared_memory.h"

namespace msvit::emulator {

namespace {

constexpr int kSharedBytesOfHopper = 227 * 1024, kReservedBytesOfBlock = 1024;
constexpr int kThreadsOfMultiprocessor = 2048, kMostBlocks = 32;
constexpr int kSharedBytesWithoutAsking = 48 * 1024;

std::mutex mutex;
std::vector<Device> devices{{2, kSharedBytesOfHopper}};
std::map<std::pair<const void*, int>, int> asked_shared_bytes;  // by kernel and device
thread_local int current_device = 0;

bool exists(int device) { return device >= 0 && device < static_cast<int>(devices.size()); }

// With the lock held.
int allowed(const void* kernel) {
  const auto found = asked_shared_bytes.find({kernel, current_device});
  return found == asked_shared_bytes.end() ? kSharedBytesWithoutAsking
                                           : std::max(kSharedBytesWithoutAsking, found->second);
}

}  // namespace

int find_or_add_device(const Device& device) {
  if (device.num_multiprocessors < 1) throw std::runtime_error("num_multiprocessors: expected at least 1");
  if (device.shared_memory_bytes < 1 || static_cast<size_t>(device.shared_memory_bytes) > SharedMemory::kMostBytes)
    throw std::runtime_error("shared_memory_bytes: expected 1 to " + std::to_string(SharedMemory::kMostBytes));
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = std::find_if(devices.begin(), devices.end(), [&](const Device& other) {
    return other.num_multiprocessors == device.num_multiprocessors &&
           other.shared_memory_bytes == device.shared_memory_bytes;
  });
  const auto number = static_cast<int>(found - devices.begin());
  if (found == devices.end()) devices.push_back(device);
  return number;
}

int allowed_shared_bytes(const void* kernel) {
  const std::lock_guard<std::mutex> lock(mutex);
  return allowed(kernel);
}

}  // namespace msvit::emulator

using namespace msvit::emulator;

const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
  }
  return "unknown error";
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}

// ---- devices

cudaError_t cudaGetDeviceCount(int* count) {
  const std::lock_guard<std::mutex> lock(mutex);
  *count = static_cast<int>(devices.size());
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!exists(device)) return cudaErrorInvalidDevice;
  *properties = {};
  std::strcpy(properties->name, "emulated on the CPU");
  properties->major = 9;
  properties->multiProcessorCount = devices[device].num_multiprocessors;
  properties->sharedMemPerBlockOptin = devices[device].shared_memory_bytes;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!exists(device)) return cudaErrorInvalidDevice;
  const bool is_count = attribute == cudaDevAttrMultiProcessorCount;
  *value = is_count ? devices[device].num_multiprocessors : devices[device].shared_memory_bytes;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!exists(device)) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}

// ---- kernels

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (value < 0 || value > devices[current_device].shared_memory_bytes) return cudaErrorInvalidValue;
  asked_shared_bytes[{kernel, current_device}] = value;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          size_t shared_bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto bytes = static_cast<int>(shared_bytes);
  const int of_multiprocessor = devices[current_device].shared_memory_bytes + kReservedBytesOfBlock;
  const int by_memory = bytes > allowed(kernel) ? 0 : of_multiprocessor / (bytes + kReservedBytesOfBlock);
  *blocks = std::min({by_memory, kThreadsOfMultiprocessor / threads, kMostBlocks});
  return cudaSuccess;
}
