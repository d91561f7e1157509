// Host side: a launch, its limits and its statistics.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "cuda/device.h"
#include "worker.h"

namespace msvit::emulator {

namespace {

constexpr int kSharedBytesOfMultiprocessor = 228 * 1024, kReservedBytesOfBlock = 1024;
constexpr int kThreadsOfMultiprocessor = 2048, kMostBlocks = 32;
constexpr int kSharedBytesWithoutAsking = 48 * 1024;
constexpr size_t kMostRecords = 10000;

std::mutex mutex;
std::map<const void*, int> allowed_shared_bytes;
std::vector<LaunchStatistics> records;

int from_environment(const char* name, int otherwise, int most) {
  const char* text = std::getenv(name);
  if (text == nullptr) return otherwise;
  const long value = std::strtol(text, nullptr, 10);
  if (value < 1 || value > most)
    throw std::runtime_error(std::string(name) + ": expected 1 to " + std::to_string(most) + ", got " + text);
  return static_cast<int>(value);
}

Schedule schedule_from_environment() {
  const char* text = std::getenv("MSVIT_EMULATED_SCHEDULE");
  return Schedule::parse(text == nullptr ? "forward" : text);
}

void check(const Launch& launch, Place place) {
  int allowed = kSharedBytesWithoutAsking;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = allowed_shared_bytes.find(launch.kernel);
    if (found != allowed_shared_bytes.end()) allowed = std::max(allowed, found->second);
  }
  const auto refuse = [&](const std::string& why) {
    throw std::runtime_error("kernel launch at " + name_of(place) + ": " + why);
  };
  if (launch.blocks < 1) refuse(std::to_string(launch.blocks) + " blocks");
  if (launch.threads < 1 || launch.threads > 1024) refuse(std::to_string(launch.threads) + " threads");
  if (launch.shared_bytes < 0 || launch.shared_bytes > allowed)
    refuse(std::to_string(launch.shared_bytes) + " bytes of shared memory; the kernel was allowed " +
           std::to_string(allowed));
}

}  // namespace

void run(const Launch& launch, Place place) {
  check(launch, place);
  const Schedule schedule = schedule_from_environment();
  const int num_workers = std::min(launch.blocks, from_environment("MSVIT_EMULATED_WORKERS", 1, 256));
  GlobalMemory global;
  std::atomic<int> next{0};
  std::string error;
  LaunchStatistics record{launch.kernel, launch.blocks, launch.threads, launch.shared_bytes, {}};
  const auto work = [&] {
    Worker& self = worker();
    self.counts() = {};
    std::string failed;
    try {
      for (int i = next++; i < launch.blocks; i = next++) {
        const int block = schedule.block(i, launch.blocks);
        self.run_block(launch, global, block, schedule.for_block(block));
      }
    } catch (const std::exception& caught) {
      failed = caught.what();
      next = launch.blocks;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    record.counts.add(self.counts());
    if (error.empty()) error = failed;
  };
  std::vector<std::thread> others;
  for (int i = 1; i < num_workers; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  if (!error.empty()) throw std::runtime_error(error);
  record_launch(record);
}

int resident_blocks(const void* kernel, int threads, int shared_bytes) {
  if (shared_bytes > cuda::shared_memory_limit(0))
    throw std::runtime_error("shared memory: " + std::to_string(shared_bytes) + " bytes are above the limit of " +
                             std::to_string(cuda::shared_memory_limit(0)));
  const std::lock_guard<std::mutex> lock(mutex);
  allowed_shared_bytes[kernel] = cuda::shared_memory_limit(0);
  const int by_memory = kSharedBytesOfMultiprocessor / (shared_bytes + kReservedBytesOfBlock);
  return std::min({by_memory, kThreadsOfMultiprocessor / threads, kMostBlocks});
}

// ---- statistics

void Counts::add(const Counts& other) {
  mma += other.mma;
  matrix_loads += other.matrix_loads;
  matrix_load_wavefronts += other.matrix_load_wavefronts;
  shared_stores += other.shared_stores;
  shared_store_wavefronts += other.shared_store_wavefronts;
  shuffles += other.shuffles;
  copy_async_bytes += other.copy_async_bytes;
  barriers += other.barriers;
  plain_shared_bytes += other.plain_shared_bytes;
  plain_global_bytes_read += other.plain_global_bytes_read;
  plain_global_bytes_written += other.plain_global_bytes_written;
}

void record_launch(const LaunchStatistics& launch) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (records.size() == kMostRecords) records.erase(records.begin());
  records.push_back(launch);
}

std::vector<LaunchStatistics> take_statistics() {
  const std::lock_guard<std::mutex> lock(mutex);
  return std::exchange(records, {});
}

}  // namespace msvit::emulator

// ---- what cuda/device.cu and launch.cuh ask the runtime for

namespace msvit::cuda {

int num_multiprocessors(int) { return emulator::from_environment("MSVIT_EMULATED_MULTIPROCESSORS", 2, 1024); }

int shared_memory_limit(int) {
  constexpr int kHopper = 227 * 1024;
  return emulator::from_environment("MSVIT_EMULATED_SHARED_MEMORY", kHopper, emulator::SharedMemory::kMostBytes);
}

int device_count(std::string&) { return 1; }

DeviceProperties device_properties(int device) {
  if (device != 0) throw std::runtime_error("CUDA device " + std::to_string(device) + ": the emulator has one");
  return {"emulated on the CPU", 9, 0, num_multiprocessors(0), shared_memory_limit(0), 0, 0};
}

int runtime_version() { return 0; }
int driver_version() { return 0; }

}  // namespace msvit::cuda
