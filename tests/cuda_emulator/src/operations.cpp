// The operations that a kernel calls: of one thread, and of a whole warp.
#include <algorithm>
#include <cmath>

#include "worker.h"

namespace msvit::emulator {

namespace {

struct Shuffle {
  uint64_t value;
  int source;
  uint64_t result;
};

struct Vote {
  uint64_t value;
  uint32_t result;
};

bool aligned_to_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

int64_t offset_of(uint32_t address) { return static_cast<int64_t>(address) - SharedMemory::kFirstAddress; }

}  // namespace

// ---- indices

Dimensions thread_index() { return {worker().thread().id, 0, 0}; }
Dimensions block_index() { return {static_cast<unsigned>(worker().block()), 0, 0}; }
Dimensions block_dimensions() { return {static_cast<unsigned>(worker().launch().threads)}; }
Dimensions grid_dimensions() { return {static_cast<unsigned>(worker().launch().blocks)}; }
unsigned char* shared_memory() { return worker().shared().data(); }
int lane_of_thread() { return worker().thread().lane(); }

// ---- warps and blocks

void sync_threads(Place place) { worker().sync_threads(place); }
void sync_warp(uint32_t mask, Place place) { worker().meet(Operation::sync_warp, mask, place, nullptr); }

uint64_t shuffle(uint32_t mask, uint64_t value, int source_lane, Place place) {
  Worker& self = worker();
  if (!(mask >> source_lane & 1))
    self.fail("__shfl_sync at " + name_of(place) + " reads lane " + std::to_string(source_lane) +
              ", which is not in its mask");
  Shuffle operands{value, source_lane, 0};
  self.meet(Operation::shuffle, mask, place, &operands);
  return operands.result;
}

uint32_t ballot(uint32_t mask, bool predicate, Place place) {
  Vote operands{predicate, 0};
  worker().meet(Operation::ballot, mask, place, &operands);
  return operands.result;
}

uint32_t match_any(uint32_t mask, uint64_t value, Place place) {
  Vote operands{value, 0};
  worker().meet(Operation::match_any, mask, place, &operands);
  return operands.result;
}

void mma(bool is_bf16, float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Place place) {
  MmaOperands operands{is_bf16, d, a, b0, b1};
  worker().meet(Operation::mma, 0xffffffffu, place, &operands);
}

void load_matrices(uint32_t* r, uint32_t address, bool transposed, Place place) {
  Worker& self = worker();
  if (address % 16 != 0)
    self.fail("load_matrices at " + name_of(place) + ": address " + std::to_string(address) +
              " is no multiple of 16 bytes");
  const uint32_t where = self.places().id(place);
  if (!self.access(AccessKind::read, offset_of(address), 16, where, "load_matrices", self.thread())) return;
  MatrixLoad operands{r, address, transposed};
  self.meet(Operation::load_matrices, 0xffffffffu, place, &operands);
}

void Worker::complete(Operation operation, Warp& warp, uint32_t mask) {
  const size_t first = (&warp - warps_.data()) * kWarpSize;
  void* operands[kWarpSize] = {};
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Thread& thread = threads_[first + lane];
    operands[lane] = thread.operands;
    thread.waits_at = Operation::none;
  }
  warp.ready |= mask;
  const auto each = [&](auto* type, const auto& body) {
    for (int lane = 0; lane < kWarpSize; ++lane)
      if (mask >> lane & 1) body(*static_cast<decltype(type)>(operands[lane]), lane);
  };
  switch (operation) {
    case Operation::sync_warp: ++warp.epoch; break;
    case Operation::shuffle:
      ++counts_.shuffles;
      each(static_cast<Shuffle*>(nullptr),
           [&](Shuffle& own, int) { own.result = static_cast<Shuffle*>(operands[own.source])->value; });
      break;
    case Operation::ballot:
    case Operation::match_any: {
      ++counts_.shuffles;
      const bool is_ballot = operation == Operation::ballot;
      each(static_cast<Vote*>(nullptr), [&](Vote& own, int) {
        each(static_cast<Vote*>(nullptr), [&](const Vote& other, int lane) {
          if (is_ballot ? other.value != 0 : other.value == own.value) own.result |= 1u << lane;
        });
      });
      break;
    }
    case Operation::mma:
      ++counts_.mma;
      multiply(operands);
      break;
    case Operation::load_matrices:
      ++counts_.matrix_loads;
      counts_.matrix_load_wavefronts += matrix_load_wavefronts(operands);
      load(shared_, operands);
      break;
    case Operation::none:
    case Operation::sync_threads: break;
  }
  if (mask == 0xffffffffu && !threads_[first].stores.empty()) count_stores(static_cast<int>(first / kWarpSize));
}

// ---- shared memory

uint32_t shared_address(const void* pointer, Place place) {
  Worker& self = worker();
  const int64_t offset = static_cast<const unsigned char*>(pointer) - self.shared().data();
  if (!self.shared().contains(offset, 0)) self.fail("shared_address at " + name_of(place) + ": not in shared memory");
  return static_cast<uint32_t>(offset + SharedMemory::kFirstAddress);
}

int atomic_add(int* address, int value, Place place) {
  Worker& self = worker();
  const int64_t offset = reinterpret_cast<unsigned char*>(address) - self.shared().data();
  const uint32_t where = self.places().id(place);
  if (!self.access(AccessKind::atomic, offset, sizeof(int), where, "atomicAdd", self.thread())) return 0;
  const int before = *address;
  *address = before + value;
  return before;
}

void store_shared_32(uint32_t address, uint32_t value, Place place) {
  Worker& self = worker();
  if (address % 4 != 0) self.fail("store_shared_32 at " + name_of(place) + ": address is no multiple of 4 bytes");
  const uint32_t where = self.places().id(place);
  const int64_t offset = offset_of(address);
  if (!self.access(AccessKind::write, offset, 4, where, "store_shared_32", self.thread())) return;
  std::memcpy(self.shared().data() + offset, &value, sizeof value);
  self.thread().stores.push_back({where, address});
}

// The n-th store of each lane at one line is taken for one instruction of the warp.
void Worker::count_stores(int warp) {
  const size_t first = static_cast<size_t>(warp) * kWarpSize, end = std::min(first + kWarpSize, threads_.size());
  std::vector<uint32_t> addresses;
  size_t left = 0;
  for (size_t i = first; i < end; ++i) left += threads_[i].stores.size();
  std::array<size_t, kWarpSize> next{};
  while (left > 0) {
    addresses.clear();
    uint32_t where = 0;
    for (size_t i = first; i < end; ++i) {
      const auto& stores = threads_[i].stores;
      size_t& position = next[i - first];
      if (position == stores.size()) continue;
      if (addresses.empty()) where = stores[position].where;
      if (stores[position].where == where) addresses.push_back(stores[position++].address);
    }
    left -= addresses.size();
    ++counts_.shared_stores;
    counts_.shared_store_wavefronts += store_wavefronts(addresses);
  }
  for (size_t i = first; i < end; ++i) threads_[i].stores.clear();
}

// ---- copies

void copy_async_16(uint32_t destination, const void* source, bool valid, Place place) {
  Worker& self = worker();
  Thread& thread = self.thread();
  if (destination % 16 != 0 || (valid && !aligned_to_16(source)))
    self.fail("copy_async_16 at " + name_of(place) + ": the " + (destination % 16 != 0 ? "destination" : "source") +
              " is not aligned to 16 bytes");
  const uint32_t where = self.places().id(place);
  const int64_t offset = offset_of(destination);
  if (!self.access(AccessKind::copy_start, offset, 16, where, "copy_async_16", thread)) return;
  AsyncCopies::Copy copy{static_cast<size_t>(offset), where, {}};
  if (valid) {
    std::memcpy(copy.bytes.data(), source, 16);
    self.global_access(AccessKind::read, source, 16, where, "copy_async_16");
  }
  self.counts().copy_async_bytes += valid ? 16 : 0;
  std::memset(self.shared().data() + offset, 0x7f, 16);
  thread.async.copies.push_back(copy);
}

void copy_async_commit() {
  AsyncCopies& async = worker().thread().async;
  async.group_ends.push_back(async.copies.size());
}

void copy_async_wait(int pending) {
  Worker& self = worker();
  AsyncCopies& async = self.thread().async;
  const size_t groups = async.group_ends.size();
  if (groups <= static_cast<size_t>(pending)) return;
  const size_t done = groups - static_cast<size_t>(pending), end = async.group_ends[done - 1];
  for (size_t i = 0; i < end; ++i) {
    const AsyncCopies::Copy& copy = async.copies[i];
    std::memcpy(self.shared().data() + copy.offset, copy.bytes.data(), copy.bytes.size());
    self.access(AccessKind::copy_end, static_cast<int64_t>(copy.offset), 16, copy.where, "copy_async_16",
                self.thread());
  }
  async.copies.erase(async.copies.begin(), async.copies.begin() + static_cast<ptrdiff_t>(end));
  async.group_ends.erase(async.group_ends.begin(), async.group_ends.begin() + static_cast<ptrdiff_t>(done));
  for (size_t& group_end : async.group_ends) group_end -= end;
}

}  // namespace msvit::emulator
