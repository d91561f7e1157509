// Counts of the operations in a launch: a performance model that needs no GPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace msvit::emulator {

struct Counts {
  int64_t mma = 0;                     // of a warp, 4096 operations each
  int64_t matrix_loads = 0;            // of a warp, four 8x8 matrices each
  int64_t matrix_load_wavefronts = 0;  // 4 a load without bank conflicts
  int64_t shared_stores = 0;           // store_shared_32 of a warp
  int64_t shared_store_wavefronts = 0;
  int64_t shuffles = 0;            // of a warp, votes and matches too
  int64_t copy_async_bytes = 0;    // read from global memory
  int64_t barriers = 0;            // of a block
  int64_t plain_shared_bytes = 0;  // the plain loads and stores of the code; 0 in builds with sanitizers
  int64_t plain_global_bytes_read = 0;
  int64_t plain_global_bytes_written = 0;

  void add(const Counts& other);
};

struct LaunchStatistics {
  const void* kernel;
  int blocks, threads, shared_bytes;
  Counts counts;
};

void record_launch(const LaunchStatistics& launch);

// The launches since the last call, oldest first, and at most the newest 10000.
std::vector<LaunchStatistics> take_statistics();

}  // namespace msvit::emulator
