#include "global_memory.h"

#include <algorithm>

namespace msvit::emulator {

namespace {

bool conflicts(const GlobalMemory::Use& earlier, uint8_t bytes, int block, uint32_t epoch, const Accessor& by) {
  if (earlier.access.epoch == 0 || !(earlier.access.bytes & bytes)) return false;
  return earlier.block != block || unordered(earlier.access, epoch, by);
}

}  // namespace

bool GlobalMemory::record(AccessKind kind, const void* address, size_t bytes, int block, uint32_t epoch,
                          const Accessor& by, Use& earlier) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto start = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t first = start; first < start + bytes; first = first / 4 * 4 + 4) {
    Word& word = words_[first / 4];
    const uintptr_t end = std::min<uintptr_t>(start + bytes, first / 4 * 4 + 4);
    const auto mask = static_cast<uint8_t>(((1u << (end - first)) - 1) << first % 4);
    const bool is_read = kind == AccessKind::read;
    for (const Use* use : {&word.write, &word.read}) {
      if ((is_read && use == &word.read) || !conflicts(*use, mask, block, epoch, by)) continue;
      earlier = *use;
      return true;
    }
    Use& known = is_read ? word.read : word.write;
    const bool of_other_block = known.access.epoch != 0 && known.block != block;
    merge(known.access, kind, mask, epoch, by);
    known.block = is_read && of_other_block ? kSeveralBlocks : block;
  }
  return false;
}

}  // namespace msvit::emulator
