// Stands for the CUDA toolkit's header: the parts of CUDA C++ that kernels use, as calls of the emulator, and the
// runtime that launches them.
#pragma once

#include <cmath>
#include <cstddef>
#include <type_traits>

#include "cuda_runtime_api.h"
#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#ifndef __restrict__
#define __restrict__
#endif

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

// ---- launches

template <class Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params), dim3 blocks, dim3 threads, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  const auto& params = *static_cast<const Params*>(arguments[0]);
  msvit::emulator::run({reinterpret_cast<const void*>(kernel), static_cast<int>(blocks.x), static_cast<int>(threads.x),
                        static_cast<int>(shared_bytes), &params, sizeof params, [&] { kernel(params); }});
  return cudaSuccess;
}
