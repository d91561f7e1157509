// The GPUs that the CUDA runtime reports here, and the shared memory that kernels may have on them.
#pragma once

namespace msvit::emulator {

struct Device {
  int num_multiprocessors;
  int shared_memory_bytes;  // largest that a block may ask for
};

// Number of the device that is like this one; a new one if there is none yet.
int find_or_add_device(const Device& device);

// Of the kernel's blocks on the current device.
int allowed_shared_bytes(const void* kernel);

}  // namespace msvit::emulator
