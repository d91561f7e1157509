// Runs blocks of a launch one after another: their threads as fibers, and the operations of whole warps and blocks.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "global_memory.h"
#include "places.h"
#include "schedule.h"
#include "shared_memory.h"
#include "statistics.h"

namespace msvit::emulator {

enum class Operation : uint8_t {
  none,
  sync_threads,
  sync_warp,
  shuffle,
  ballot,
  match_any,
  mma,
  load_matrices,
};
const char* name_of(Operation operation);

// Copies that a thread has started and not waited for, in order, and the ends of its groups.
struct AsyncCopies {
  struct Copy {
    size_t offset;
    uint32_t where;
    std::array<unsigned char, 16> bytes;
  };
  std::vector<Copy> copies;
  std::vector<size_t> group_ends;
};

struct Store {
  uint32_t where;
  uint32_t address;
};

struct Thread {
  Context context;
  uint16_t id;
  Operation waits_at;
  bool has_left;
  uint32_t mask;
  Place place;
  void* operands;
  AsyncCopies async;
  std::vector<Store> stores;  // since the last operation of the whole warp

  int warp() const { return id / kWarpSize; }
  int lane() const { return id % kWarpSize; }
  uint32_t bit() const { return 1u << lane(); }
};

// Lanes that have come to an operation and wait for the others of its mask.
struct Rendezvous {
  Operation operation;
  uint32_t mask;
  Place place;
  uint32_t arrived;
};

struct Warp {
  uint32_t ready;  // lanes that can run
  uint32_t epoch;  // __syncwarp passed
  std::vector<Rendezvous> waiting;
  std::array<uint8_t, kWarpSize> order;
  int position;  // of the running lane in `order`
};

class Worker {
 public:
  Worker();
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Runs one block. Throws std::runtime_error if the kernel makes an error.
  void run_block(const Launch& launch, GlobalMemory& global, int block, Schedule schedule);

  // ---- for the thread that runs

  Thread& thread() { return *current_; }
  bool is_running() const { return current_ != nullptr; }
  int block() const { return block_; }
  const Launch& launch() const { return *launch_; }
  SharedMemory& shared() { return shared_; }
  Places& places() { return places_; }
  Counts& counts() { return counts_; }
  // Whether it is memory of one thread, or a parameter of the kernel.
  bool is_private(const void* address) const {
    const auto at = [&](const void* start) {
      return static_cast<size_t>(static_cast<const unsigned char*>(address) - static_cast<const unsigned char*>(start));
    };
    return at(stacks_) < kStacksBytes || at(launch_->params) < launch_->params_bytes;
  }

  // Waits for all lanes of `mask`; the last one to come does the work for all with their operands.
  void meet(Operation operation, uint32_t mask, Place place, void* operands);
  void sync_threads(Place place);

  // Records an access to shared memory by the running thread, or by another lane of its warp; false after an error.
  bool access(AccessKind kind, int64_t offset, size_t bytes, uint32_t where, const char* what, const Thread& thread);

  // The same for global memory, by the running thread.
  void global_access(AccessKind kind, const void* address, size_t bytes, uint32_t where, const char* what);

  // Ends the launch with an error. Does not return if a thread is running.
  void fail(const std::string& message);

 private:
  static constexpr size_t kStackBytes = 256 * 1024, kMostThreads = 1024, kStacksBytes = kStackBytes * kMostThreads;

  static void run_thread();
  void start_threads();
  void run_warp(int warp);
  void give_way();
  Thread* next_lane(Warp& warp);
  void complete(Operation operation, Warp& warp, uint32_t mask);
  void count_stores(int warp);
  std::string describe(const Thread& thread) const;
  std::string who(const Access& access) const;
  std::string deadlock() const;

  unsigned char* stacks_;
  Context scheduler_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Thread* current_ = nullptr;
  const Launch* launch_ = nullptr;
  GlobalMemory* global_ = nullptr;
  int block_ = 0;
  Schedule schedule_;
  SharedMemory shared_;
  Places places_;
  Counts counts_;
  int at_barrier_ = 0, running_ = 0;
  std::string error_;
};

// The worker of this operating-system thread. Kernels run on the thread that launches them and on others that `run`
// starts. A pointer in thread-local memory is found without a call.
extern thread_local Worker* this_worker __attribute__((tls_model("initial-exec")));
Worker& make_worker();
inline Worker& worker() { return this_worker != nullptr ? *this_worker : make_worker(); }

// Operations of a whole warp: operands[i] belongs to the i-th lane of the mask.
struct MmaOperands {
  bool is_bf16;
  float* d;
  const uint32_t* a;
  uint32_t b0, b1;
};
void multiply(void* const (&operands)[kWarpSize]);

struct MatrixLoad {
  uint32_t* r;
  uint32_t address;
  bool transposed;
};
void load(const SharedMemory& shared, void* const (&operands)[kWarpSize]);
int matrix_load_wavefronts(void* const (&operands)[kWarpSize]);
int store_wavefronts(const std::vector<uint32_t>& addresses);

}  // namespace msvit::emulator
