// What the CUDA runtime says about the machine. Safe to call where there is neither a GPU nor a driver.
#pragma once

#include <cstdint>
#include <string>

namespace msvit::cuda {

struct DeviceProperties {
  std::string name;
  int capability_major;
  int capability_minor;
  int num_multiprocessors;
  int64_t shared_memory_per_block_bytes;  // largest that a kernel may opt in to
  int64_t l2_cache_bytes;
  int64_t total_memory_bytes;
};

// Number of GPUs; 0 without a GPU or driver, with the runtime's reason in `reason`.
int device_count(std::string& reason);

// Throws std::runtime_error if the device does not exist.
DeviceProperties device_properties(int device);

// 1000 * major + 10 * minor of the toolkit that this module was built with, and of the driver (0 = no driver).
int runtime_version();
int driver_version();

}  // namespace msvit::cuda
