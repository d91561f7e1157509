// The interface of csrc/cuda/device_code.cuh, where each function is described, by calls of the emulator.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <type_traits>

#define MSVIT_SHARED_MEMORY(name) unsigned char* const name = ::msvit::emulator::shared_memory()

namespace msvit::cuda {

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

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

}  // namespace msvit::cuda
