// The shared memory of one block, and the threads that wrote and read each word since the last barrier.
//
// A thread may touch a word that another thread wrote, and write a word that another thread read, only after a barrier
// of the block or, if both are in one warp, after __syncwarp. If several threads use parts of a word, the last counts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace msvit::emulator {

constexpr int kWarpSize = 32;

enum class AccessKind : uint8_t { read, write, atomic, copy_start, copy_end };

// The thread that accesses, and the line of code (Places).
struct Accessor {
  uint16_t thread;
  uint32_t warp_epoch;  // __syncwarp that its warp has passed
  uint32_t where;
};

struct Access {
  uint32_t epoch = 0;  // barriers of the block; 0 for no access
  uint32_t warp_epoch = 0;
  uint32_t where = 0;
  uint16_t who = 0;  // a thread, or one of the values below
  uint8_t bytes = 0;
  AccessKind kind = AccessKind::read;

  static constexpr uint16_t kSeveralOfWarp = 0x8000, kSeveral = 0xffff;
  int warp() const { return who == kSeveral ? -1 : who & kSeveralOfWarp ? who & 0xff : who / kWarpSize; }
};

// Whether `earlier` is by another thread with no barrier between; `epoch`: barriers that the block of `by` has passed.
bool unordered(const Access& earlier, uint32_t epoch, const Accessor& by);

// Makes `known` the newest access, or several if none of them is ordered before another.
void merge(Access& known, AccessKind kind, uint8_t bytes, uint32_t epoch, const Accessor& by);

class SharedMemory {
 public:
  static constexpr size_t kMostBytes = 256 * 1024;
  static constexpr size_t kGuardBytes = 64 * 1024;
  // Address of the first byte. As on a Hopper GPU it is not 0, so that an offset taken for an address fails.
  static constexpr uint32_t kFirstAddress = 1024;

  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Fills it with bits that are NaN in every format and no useful index.
  void start_block(size_t bytes);
  void pass_barrier() { ++epoch_; }
  uint32_t epoch() const { return epoch_; }

  unsigned char* data() { return data_; }
  const unsigned char* at(uint32_t address) const { return data_ + (address - kFirstAddress); }
  size_t bytes() const { return bytes_; }
  // Whether the address is in the memory or in the guard areas around it.
  bool is_near(const void* address) const {
    return static_cast<size_t>(static_cast<const unsigned char*>(address) - region_) < kMostBytes + 2 * kGuardBytes;
  }
  bool contains(int64_t offset, size_t bytes) const {
    return offset >= 0 && static_cast<size_t>(offset) + bytes <= bytes_;
  }

  // Records an access. Returns an earlier one that it conflicts with, or null.
  const Access* record(AccessKind kind, size_t offset, size_t bytes, const Accessor& by);

 private:
  struct Word {
    Access write, read;
  };

  unsigned char* region_;
  unsigned char* data_;
  size_t bytes_ = 0;
  uint32_t epoch_ = 0, first_epoch_ = 1;
  std::vector<Word> words_;
};

}  // namespace msvit::emulator
