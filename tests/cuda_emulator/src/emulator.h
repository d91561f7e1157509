// The interface that the shadow headers call: a function for each operation of a thread, a warp or a block, and
// launches.
//
// Every thread of a block is a fiber; blocks run one after another. An error of a kernel is an exception that names
// kernel, block, thread and line: docs/cuda.md lists what is found.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>

namespace msvit::emulator {

struct Dimensions {
  unsigned int x, y = 1, z = 1;
};

// The line of a kernel that calls the emulator.
struct Place {
  const char* file;
  int line;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// By value: a reference would let the compiler's instrumentation see the emulator's own memory.
Dimensions thread_index();
Dimensions block_index();
Dimensions block_dimensions();
Dimensions grid_dimensions();
unsigned char* shared_memory();

void sync_threads(Place place);
void sync_warp(uint32_t mask, Place place);
uint64_t shuffle(uint32_t mask, uint64_t value, int source_lane, Place place);
uint32_t ballot(uint32_t mask, bool predicate, Place place);
uint32_t match_any(uint32_t mask, uint64_t value, Place place);
int lane_of_thread();
int atomic_add(int* address, int value, Place place);

void mma(bool is_bf16, float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Place place);
uint32_t shared_address(const void* pointer, Place place);
void copy_async_16(uint32_t destination, const void* source, bool valid, Place place);
void copy_async_commit();
void copy_async_wait(int pending);
void load_matrices(uint32_t* r, uint32_t address, bool transposed, Place place);
void store_shared_32(uint32_t address, uint32_t value, Place place);

uint32_t pack_bf16(float low, float high);
uint32_t pack_fp16(float low, float high);
float fp16_to_float(uint16_t bits);

template <class To, class From>
To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "warps exchange values of 4 or 8 bytes");
  if constexpr (sizeof(T) == 4) return bit_cast<uint32_t>(value);
  if constexpr (sizeof(T) == 8) return bit_cast<uint64_t>(value);
}

template <class T>
T from_word(uint64_t word) {
  if constexpr (sizeof(T) == 4) return bit_cast<T>(static_cast<uint32_t>(word));
  if constexpr (sizeof(T) == 8) return bit_cast<T>(word);
}

// Each thread of the kernel calls `run_thread`.
struct Launch {
  const void* kernel;
  int blocks, threads, shared_bytes;
  const void* params;  // constant memory
  size_t params_bytes;
  std::function<void()> run_thread;
};

void run(const Launch& launch);

}  // namespace msvit::emulator
