// The words of global memory that the threads of a launch read and wrote.
//
// Blocks run in any order, so no block may touch a word that another block of the same launch writes. Within a block
// the rules are those of shared memory.
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

  // Records an access by a thread of a block that has passed `epoch` barriers. If it conflicts with an earlier use,
  // returns true and stores that in `earlier`.
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
