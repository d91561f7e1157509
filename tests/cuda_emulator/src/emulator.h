// What CUDA C++ and device_code.cuh offer to a kernel, and launch.cuh to its launcher, for kernels that run on the CPU.
//
// Every thread of a block is a fiber; blocks run one after another. What a kernel must not do is an error that names
// kernel, block, thread and line: docs/cuda.md lists what is found.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#ifndef __restrict__
#define __restrict__
#endif
#define MSVIT_SHARED_MEMORY(name) unsigned char* const name = ::msvit::emulator::shared_memory()

#define threadIdx (::msvit::emulator::thread_index())
#define blockIdx (::msvit::emulator::block_index())
#define blockDim (::msvit::emulator::block_dimensions())
#define gridDim (::msvit::emulator::grid_dimensions())
#define __log2f log2f  // glibc declares this name too

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned int x, y;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned int x, unsigned int y) { return {x, y}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace msvit::cuda {
struct bf16;
struct fp16;
}  // namespace msvit::cuda

namespace msvit::emulator {

struct Dimensions {
  unsigned int x, y = 1, z = 1;
};

// Where a kernel calls the emulator.
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

struct Launch {
  const void* kernel;
  int blocks, threads, shared_bytes;
  const void* params;  // constant memory
  size_t params_bytes;
  std::function<void()> run_thread;
};

void run(const Launch& launch, Place place);
int resident_blocks(const void* kernel, int threads, int shared_bytes);

}  // namespace msvit::emulator

// ---- CUDA C++

using msvit::emulator::Place;

inline void __syncthreads(Place place = Place::here()) { msvit::emulator::sync_threads(place); }
inline void __syncwarp(unsigned mask = 0xffffffffu, Place place = Place::here()) {
  msvit::emulator::sync_warp(mask, place);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, Place place = Place::here()) {
  namespace emulator = msvit::emulator;
  const int segment = emulator::lane_of_thread() & ~(width - 1);
  const int lane = segment | (source & (width - 1));
  return emulator::from_word<T>(emulator::shuffle(mask, emulator::to_word(value), lane, place));
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, Place place = Place::here()) {
  namespace emulator = msvit::emulator;
  const int own = emulator::lane_of_thread(), lane = own ^ lane_mask;
  const int source = lane / width <= own / width ? lane : own;
  return emulator::from_word<T>(emulator::shuffle(mask, emulator::to_word(value), source, place));
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, Place place = Place::here()) {
  return msvit::emulator::ballot(mask, predicate, place);
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, Place place = Place::here()) {
  return msvit::emulator::match_any(mask, msvit::emulator::to_word(value), place);
}

inline int atomicAdd(int* address, int value, Place place = Place::here()) {
  return msvit::emulator::atomic_add(address, value, place);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(unsigned x) { return msvit::emulator::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return msvit::emulator::bit_cast<unsigned>(x); }

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}

template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

namespace msvit::cuda {

// ---- device_code.cuh, where each function is described

template <class T>
inline constexpr bool is_bf16 = std::is_same_v<T, bf16>;

template <class T>
uint32_t pack(float low, float high) {
  return is_bf16<T> ? emulator::pack_bf16(low, high) : emulator::pack_fp16(low, high);
}

template <class T>
float2 unpack(uint32_t pair) {
  if (is_bf16<T>) return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  return make_float2(emulator::fp16_to_float(static_cast<uint16_t>(pair)),
                     emulator::fp16_to_float(static_cast<uint16_t>(pair >> 16)));
}

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0 : y;  // .ftz
}

template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Place place = Place::here()) {
  emulator::mma(is_bf16<T>, d, a, b0, b1, place);
}

inline uint32_t shared_address(const void* pointer, Place place = Place::here()) {
  return emulator::shared_address(pointer, place);
}
inline void copy_async_16(uint32_t destination, const void* source, bool valid, Place place = Place::here()) {
  emulator::copy_async_16(destination, source, valid, place);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }

template <int PENDING>
void copy_async_wait() {
  emulator::copy_async_wait(PENDING);
}

inline void load_matrices(uint32_t (&r)[4], uint32_t address, Place place = Place::here()) {
  emulator::load_matrices(r, address, false, place);
}
inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address, Place place = Place::here()) {
  emulator::load_matrices(r, address, true, place);
}
inline void store_shared_32(uint32_t address, uint32_t value, Place place = Place::here()) {
  emulator::store_shared_32(address, value, place);
}

// ---- launch.cuh

class DeviceGuard {
 public:
  explicit DeviceGuard(int) {}
  ~DeviceGuard() {}
};

int num_multiprocessors(int device);
int shared_memory_limit(int device);

template <class Params>
int resident_blocks(void (*kernel)(Params), int, int threads, int shared_bytes) {
  return emulator::resident_blocks(reinterpret_cast<const void*>(kernel), threads, shared_bytes);
}

template <class Params>
void launch(void (*kernel)(Params), int blocks, int threads, int shared_bytes, uintptr_t, const Params& params,
            Place place = Place::here()) {
  const auto address = reinterpret_cast<const void*>(kernel);
  emulator::run({address, blocks, threads, shared_bytes, &params, sizeof params, [&] { kernel(params); }}, place);
}

}  // namespace msvit::cuda
