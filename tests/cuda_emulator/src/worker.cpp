#include "worker.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#endif

namespace msvit::emulator {

thread_local Worker* this_worker = nullptr;

namespace {

std::string lanes_of(uint32_t mask) {
  std::string text;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const int first = lane;
    while (lane + 1 < kWarpSize && mask >> (lane + 1) & 1) ++lane;
    text += (text.empty() ? "" : ",") + std::to_string(first);
    if (lane > first) text += "-" + std::to_string(lane);
  }
  return text;
}

}  // namespace

const char* name_of(Operation operation) {
  constexpr const char* kNames[] = {"nothing",       "__syncthreads",    "__syncwarp", "__shfl_sync",
                                    "__ballot_sync", "__match_any_sync", "mma",        "load_matrices"};
  return kNames[static_cast<int>(operation)];
}

Worker& make_worker() {
  thread_local const std::unique_ptr<Worker> owner = std::make_unique<Worker>();
  this_worker = owner.get();
  return *this_worker;
}

Worker::Worker() {
  // Only the pages that are used take memory.
  void* memory =
      mmap(nullptr, kStacksBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("the emulator's stacks: out of memory");
  stacks_ = static_cast<unsigned char*>(memory);
}

Worker::~Worker() { munmap(stacks_, kStacksBytes); }

// ---- the scheduler

void Worker::run_block(const Launch& launch, GlobalMemory& global, int block, Schedule schedule) {
  launch_ = &launch;
  global_ = &global;
  block_ = block;
  schedule_ = schedule;
  error_.clear();
  shared_.start_block(launch.shared_bytes);
  start_threads();
  while (running_ > 0 && error_.empty()) {
    uint32_t ready = 0;
    for (size_t i = 0; i < warps_.size(); ++i) ready |= (warps_[i].ready != 0 ? 1u : 0u) << i;
    if (ready == 0) {
      error_ = deadlock();
      break;
    }
    run_warp(schedule_.warp(ready));
  }
  current_ = nullptr;
  if (!error_.empty()) {
    throw std::runtime_error(locate(launch.kernel).function + ", block " + std::to_string(block) + ": " + error_);
  }
  for (size_t i = 0; i < warps_.size(); ++i) count_stores(static_cast<int>(i));
}

void Worker::start_threads() {
  const int count = launch_->threads;
  threads_.resize(count);
  warps_.resize((count + kWarpSize - 1) / kWarpSize);
  for (Warp& warp : warps_) warp = {0, 0, {}, {}, 0};
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads_[i];
    thread.id = static_cast<uint16_t>(i);
    thread.waits_at = Operation::none;
    thread.has_left = false;
    thread.async.copies.clear();
    thread.async.group_ends.clear();
    thread.stores.clear();
    warps_[thread.warp()].ready |= thread.bit();
    // The tops differ in their cache lines, or the frames of all threads would compete for a few sets of the cache.
    unsigned char* low = stacks_ + i * kStackBytes;
    ASAN_UNPOISON_MEMORY_REGION(low, kStackBytes);
    prepare(thread.context, low, kStackBytes - i % 61 * 64, &Worker::run_thread);
  }
  running_ = count;
  at_barrier_ = 0;
}

void Worker::run_thread() {
  Worker& self = *this_worker;
  self.launch_->run_thread();
  Thread& thread = *self.current_;
  thread.has_left = true;
  self.warps_[thread.warp()].ready &= ~thread.bit();
  --self.running_;
  self.give_way();
  std::abort();  // nobody continues a thread that has left
}

// Runs each ready lane once, until it waits or has left.
void Worker::run_warp(int index) {
  Warp& warp = warps_[index];
  schedule_.order_lanes(warp.order);
  warp.position = -1;
  current_ = &threads_[index * kWarpSize];
  current_ = next_lane(warp);
  if (current_ != nullptr) switch_context(scheduler_, current_->context);
}

Thread* Worker::next_lane(Warp& warp) {
  const size_t first = (&warp - warps_.data()) * kWarpSize;
  while (++warp.position < kWarpSize) {
    const int lane = warp.order[warp.position];
    if (warp.ready >> lane & 1) return &threads_[first + lane];
  }
  return nullptr;
}

void Worker::give_way() {
  Thread& self = *current_;
  Thread* next = error_.empty() ? next_lane(warps_[self.warp()]) : nullptr;
  if (next == &self) return;
  if (next != nullptr) current_ = next;
  switch_context(self.context, next != nullptr ? next->context : scheduler_);
}

void Worker::fail(const std::string& message) {
  if (current_ == nullptr) throw std::runtime_error(message);
  error_ = message;
  give_way();
}

// ---- meeting points

void Worker::meet(Operation operation, uint32_t mask, Place place, void* operands) {
  Thread& self = *current_;
  Warp& warp = warps_[self.warp()];
  if (!(mask & self.bit()))
    return fail(describe(self) + " calls " + name_of(operation) + " at " + emulator::name_of(place) +
                " with a mask that does not name it: lanes " + lanes_of(mask));
  self.waits_at = operation;
  self.mask = mask;
  self.place = place;
  self.operands = operands;
  warp.ready &= ~self.bit();
  // The hardware executes these for a whole warp at once, so all lanes must be at the same line.
  const bool aligned = operation == Operation::mma || operation == Operation::load_matrices;
  auto found = std::find_if(warp.waiting.begin(), warp.waiting.end(), [&](const Rendezvous& other) {
    return other.operation == operation && other.mask == mask &&
           (!aligned || (other.place.line == place.line && other.place.file == place.file));
  });
  if (found == warp.waiting.end()) {
    warp.waiting.push_back({operation, mask, place, 0});
    found = warp.waiting.end() - 1;
  }
  found->arrived |= self.bit();
  if (found->arrived == mask) {
    warp.waiting.erase(found);
    complete(operation, warp, mask);
  }
  give_way();
}

void Worker::sync_threads(Place place) {
  Thread& self = *current_;
  self.waits_at = Operation::sync_threads;
  self.place = place;
  warps_[self.warp()].ready &= ~self.bit();
  if (++at_barrier_ == launch_->threads) {
    at_barrier_ = 0;
    ++counts_.barriers;
    shared_.pass_barrier();
    for (Thread& thread : threads_) {
      thread.waits_at = Operation::none;
      warps_[thread.warp()].ready |= thread.bit();
    }
    for (size_t i = 0; i < warps_.size(); ++i) count_stores(static_cast<int>(i));
  }
  give_way();
}

// ---- errors

std::string Worker::describe(const Thread& thread) const {
  return "thread " + std::to_string(thread.id) + " (warp " + std::to_string(thread.warp()) + ", lane " +
         std::to_string(thread.lane()) + ")";
}

std::string Worker::who(const Access& access) const {
  if (access.who == Access::kSeveral) return "several warps";
  if (access.who & Access::kSeveralOfWarp) return "several lanes of warp " + std::to_string(access.warp());
  return describe(threads_[access.who]);
}

bool Worker::access(AccessKind kind, int64_t offset, size_t bytes, uint32_t where, const char* what,
                    const Thread& thread) {
  constexpr const char* kVerbs[] = {"reads", "writes", "adds to", "starts a copy to", "ends a copy to"};
  const auto act = [&] {
    return describe(thread) + " " + kVerbs[static_cast<int>(kind)] + " bytes " + std::to_string(offset) + " to " +
           std::to_string(offset + static_cast<int64_t>(bytes) - 1) + " of shared memory (" + what + " at " +
           places_.name(where) + ")";
  };
  if (!shared_.contains(offset, bytes)) {
    fail(act() + ": outside of its " + std::to_string(shared_.bytes()) + " bytes");
    return false;
  }
  const Accessor by{thread.id, warps_[thread.warp()].epoch, where};
  const Access* earlier = shared_.record(kind, static_cast<size_t>(offset), bytes, by);
  if (earlier == nullptr) return true;
  const bool in_flight = earlier->kind == AccessKind::copy_start;
  const char* verb = in_flight ? "started a copy to" : earlier->kind == AccessKind::read ? "read" : "wrote";
  fail("race: " + act() + ", which " + who(*earlier) + " " + verb + " at " + places_.name(earlier->where) +
       (in_flight ? " and has not waited for" : ", with no barrier between"));
  return false;
}

void Worker::global_access(AccessKind kind, const void* address, size_t bytes, uint32_t where, const char* what) {
  GlobalMemory::Use earlier;
  const Accessor by{current_->id, warps_[current_->warp()].epoch, where};
  if (!global_->record(kind, address, bytes, block_, shared_.epoch(), by, earlier)) return;
  std::string other = "several blocks";
  if (earlier.block == block_) other = who(earlier.access);
  if (earlier.block >= 0 && earlier.block != block_) other = "block " + std::to_string(earlier.block);
  fail("race: " + describe(*current_) + (kind == AccessKind::read ? " reads " : " writes ") + std::to_string(bytes) +
       " bytes of global memory (" + what + " at " + places_.name(where) + "), which " + other +
       (earlier.access.kind == AccessKind::read ? " read at " : " wrote at ") + places_.name(earlier.access.where) +
       (earlier.block == block_ ? ", with no barrier between" : " in the same launch"));
}

std::string Worker::deadlock() const {
  std::string text = "deadlock:";
  for (size_t i = 0; i < warps_.size(); ++i) {
    std::vector<std::pair<std::string, uint32_t>> groups;
    for (size_t id = i * kWarpSize; id < std::min(threads_.size(), (i + 1) * kWarpSize); ++id) {
      const Thread& thread = threads_[id];
      std::string state = "have left";
      if (!thread.has_left) {
        state = std::string("wait at ") + name_of(thread.waits_at) + " at " + emulator::name_of(thread.place);
        if (thread.waits_at != Operation::sync_threads) state += " for lanes " + lanes_of(thread.mask);
      }
      auto found = std::find_if(groups.begin(), groups.end(), [&](const auto& group) { return group.first == state; });
      if (found == groups.end()) found = groups.insert(found, {state, 0});
      found->second |= thread.bit();
    }
    text += "\n  warp " + std::to_string(i) + ":";
    for (const auto& [state, lanes] : groups) text += " lanes " + lanes_of(lanes) + " " + state + ";";
  }
  return text;
}

}  // namespace msvit::emulator
