// Which words of global memory the threads of a launch read and wrote.
//
// Blocks run in any order, so no block may touch what another one of the same launch writes. Within a block the rules
// are those of shared memory.
#pragma once

#include <mutex>
#include <unordered_map>

#include "shared_memory.h"

namespace msvit::emulator {

class GlobalMemory {
 public:
  static constexpr int kSeveralBlocks = -1;

  struct Use {
    Access access;
    int block = 0;
  };

  // Records an access by a thread of a block that has passed `epoch` barriers. True, and the earlier one, where it
  // conflicts with one.
  bool record(AccessKind kind, const void* address, size_t bytes, int block, uint32_t epoch, const Accessor& by,
              Use& earlier);

 private:
  struct Word {
    Use write, read;
  };

  std::mutex mutex_;  // workers run blocks of one launch at the same time
  std::unordered_map<uintptr_t, Word> words_;
};

}  // namespace msvit::emulator
