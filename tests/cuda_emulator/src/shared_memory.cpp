#include "shared_memory.h"

#include <algorithm>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

namespace msvit::emulator {

namespace {
constexpr std::align_val_t kAlignment{1024};
constexpr uint32_t kPoison = 0x7fff7fff;
}  // namespace

SharedMemory::SharedMemory()
    : region_(static_cast<unsigned char*>(operator new(kMostBytes + 2 * kGuardBytes, kAlignment))),
      data_(region_ + kGuardBytes),
      words_(kMostBytes / 4) {}

SharedMemory::~SharedMemory() {
  ASAN_UNPOISON_MEMORY_REGION(region_, kMostBytes + 2 * kGuardBytes);
  operator delete(region_, kAlignment);
}

void SharedMemory::start_block(size_t bytes) {
  if (bytes != bytes_) {
    ASAN_POISON_MEMORY_REGION(region_, kMostBytes + 2 * kGuardBytes);
    ASAN_UNPOISON_MEMORY_REGION(data_, bytes);
  }
  bytes_ = bytes;
  auto* words = reinterpret_cast<uint32_t*>(data_);
  std::fill(words, words + bytes / 4, kPoison);
  std::fill(data_ + bytes / 4 * 4, data_ + bytes, 0x7f);
  if (epoch_ > 0xf0000000u) {
    std::fill(words_.begin(), words_.end(), Word{});
    epoch_ = 0;
  }
  first_epoch_ = ++epoch_;
}

bool unordered(const Access& earlier, uint32_t epoch, const Accessor& by) {
  if (earlier.epoch != epoch || earlier.who == by.thread) return false;
  return earlier.warp() != by.thread / kWarpSize || earlier.warp_epoch == by.warp_epoch;
}

void merge(Access& known, AccessKind kind, uint8_t bytes, uint32_t epoch, const Accessor& by) {
  uint16_t who = by.thread;
  if (known.epoch == epoch && known.who != by.thread && known.kind == kind) {
    const int warp = by.thread / kWarpSize;
    if (known.warp() != warp) {
      who = Access::kSeveral;
    } else if (known.warp_epoch == by.warp_epoch) {
      who = static_cast<uint16_t>(Access::kSeveralOfWarp | warp);
    }
    bytes |= known.bytes;
  }
  known = {epoch, by.warp_epoch, by.where, who, bytes, kind};
}

const Access* SharedMemory::record(AccessKind kind, size_t offset, size_t bytes, const Accessor& by) {
  for (size_t first = offset; first < offset + bytes; first = first / 4 * 4 + 4) {
    Word& word = words_[first / 4];
    const size_t end = std::min(offset + bytes, first / 4 * 4 + 4);
    const auto mask = static_cast<uint8_t>(((1u << (end - first)) - 1) << first % 4);
    if (kind == AccessKind::copy_end) {
      word.write = {epoch_, by.warp_epoch, by.where, by.thread, mask, AccessKind::write};
      continue;
    }
    const auto conflicts = [&](const Access& earlier) {
      return (earlier.bytes & mask) != 0 && unordered(earlier, epoch_, by);
    };
    const bool in_flight = word.write.kind == AccessKind::copy_start && word.write.epoch >= first_epoch_;
    const bool both_atomic = kind == AccessKind::atomic && word.write.kind == AccessKind::atomic;
    if (in_flight || (!both_atomic && conflicts(word.write))) return &word.write;
    if (kind == AccessKind::read) {
      merge(word.read, kind, mask, epoch_, by);
      continue;
    }
    if (conflicts(word.read)) return &word.read;
    if (kind == AccessKind::atomic) {
      merge(word.write, kind, mask, epoch_, by);
    } else {
      word.write = {epoch_, by.warp_epoch, by.where, by.thread, mask, kind};
    }
  }
  return nullptr;
}

}  // namespace msvit::emulator
