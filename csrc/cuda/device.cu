// Number and properties of the GPUs, from the CUDA runtime.
#include <cuda_runtime.h>

#include <stdexcept>

#include "device.h"

namespace msvit::cuda {

int device_count(std::string& reason) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) return count;
  reason = cudaGetErrorString(status);
  return 0;
}

DeviceProperties device_properties(int device) {
  cudaDeviceProp properties{};
  const cudaError_t status = cudaGetDeviceProperties(&properties, device);
  if (status != cudaSuccess)
    throw std::runtime_error("CUDA device " + std::to_string(device) + ": " + cudaGetErrorString(status));
  return {properties.name,
          properties.major,
          properties.minor,
          properties.multiProcessorCount,
          static_cast<int64_t>(properties.sharedMemPerBlockOptin),
          properties.l2CacheSize,
          static_cast<int64_t>(properties.totalGlobalMem)};
}

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace msvit::cuda
