// A launch: its limits, the threads of the CPU that run its blocks, and its statistics.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "devices.h"
#include "worker.h"

namespace msvit::emulator {

namespace {

constexpr size_t kMostRecords = 10000;

std::mutex mutex;
std::vector<LaunchStatistics> records;

constexpr int kMostWorkers = 256;

int num_workers_from_environment() {
  const char* text = std::getenv("MSVIT_EMULATED_WORKERS");
  if (text == nullptr) return 1;
  const long value = std::strtol(text, nullptr, 10);
  if (value < 1 || value > kMostWorkers)
    throw std::runtime_error("MSVIT_EMULATED_WORKERS: expected 1 to " + std::to_string(kMostWorkers) + ", got " + text);
  return static_cast<int>(value);
}

Schedule schedule_from_environment() {
  const char* text = std::getenv("MSVIT_EMULATED_SCHEDULE");
  return Schedule::parse(text == nullptr ? "forward" : text);
}

void check(const Launch& launch) {
  const auto refuse = [&](const std::string& why) {
    throw std::runtime_error("launch of " + locate(launch.kernel).function + ": " + why);
  };
  if (launch.blocks < 1) refuse(std::to_string(launch.blocks) + " blocks");
  if (launch.threads < 1 || launch.threads > 1024) refuse(std::to_string(launch.threads) + " threads");
  const int allowed = allowed_shared_bytes(launch.kernel);
  if (launch.shared_bytes < 0 || launch.shared_bytes > allowed)
    refuse(std::to_string(launch.shared_bytes) + " bytes of shared memory; the kernel was allowed " +
           std::to_string(allowed));
}

}  // namespace

void run(const Launch& launch) {
  check(launch);
  const Schedule schedule = schedule_from_environment();
  const int num_workers = std::min(launch.blocks, num_workers_from_environment());
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
