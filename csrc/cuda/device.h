// Queries to the CUDA runtime about the machine. They also work without a GPU and without a driver.
#pragma once

#include <cstdint>
#include <string>

namespace msvit::cuda {

struct DeviceProperties {
  std::string name;
  int capability_major;
  int capability_minor;
  int num_multiprocessors;
  int64_t shared_memory_per_block_bytes;  // the most that a kernel may opt in to
  int64_t l2_cache_bytes;
  int64_t total_memory_bytes;
};

// Number of GPUs. If the query fails, as it does without a driver, returns 0 and stores the runtime's text in `reason`.
int device_count(std::string& reason);

// Throws std::runtime_error if the device does not exist.
DeviceProperties device_properties(int device);

// Versions as 1000 * major + 10 * minor: of the toolkit that built this module, and of the driver (0 without a driver).
int runtime_version();
int driver_version();

}  // namespace msvit::cuda
