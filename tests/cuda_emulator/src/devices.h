// The GPUs that the CUDA runtime reports here, and the shared memory that kernels may have on them.
#pragma once

namespace msvit::emulator {

struct Device {
  int num_multiprocessors;
  int shared_memory_bytes;  // largest that a block may ask for
};

// Number of the device with these properties; it is added if there is none.
int find_or_add_device(const Device& device);

// Shared memory that a block of this kernel may have on the current device.
int allowed_shared_bytes(const void* kernel);

}  // namespace msvit::emulator
