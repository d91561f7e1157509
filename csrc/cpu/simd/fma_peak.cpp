// Independent chains of multiply-adds that stay in registers, as wide as the vectors of the ISA level. Each thread runs
// the same number of iterations, and the slowest one is timed.
#include "fma_peak.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "vec.h"

namespace msvit {
namespace MSVIT_ISA {

namespace {

// On the CPUs of the last decade, at most 10 multiply-adds are in flight. 12 chains and two operands fit the 16
// registers of AVX2.
constexpr int kChains = 12;

// Keeps the compiler from folding a loop with known operands. Takes no instruction.
MSVIT_INLINE void hide(VecF& x) {
#if defined(__x86_64__)
  __asm__ volatile("" : "+x"(x));
#else
  __asm__ volatile("" : "+m"(x));
#endif
}

float fp32_chains(int64_t iterations) {
  VecF scale = splat(0.999f), shift = splat(0.001f);
  hide(scale);
  hide(shift);
  VecF sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = splat(static_cast<float>(c));
  for (int64_t i = 0; i < iterations; ++i) {
    MSVIT_UNROLL
    for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * scale + shift;
  }
  VecF total{};
  for (const VecF sum : sums) total += sum;
  return reduce_add(total);
}

#ifdef __AVX512BF16__
float bf16_chains(int64_t iterations) {
  const __m512 small = _mm512_set1_ps(1e-3f);
  __m512bh a = _mm512_cvtne2ps_pbh(small, small), b = a;
  __asm__ volatile("" : "+v"(a), "+v"(b));
  __m512 sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = _mm512_set1_ps(static_cast<float>(c));
  for (int64_t i = 0; i < iterations; ++i) {
    MSVIT_UNROLL
    for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbf16_ps(sums[c], a, b);
  }
  VecF total{};
  for (const __m512 sum : sums) total += reinterpret_cast<VecF>(sum);
  return reduce_add(total);
}
constexpr int kBf16Products = 32;
#else
float bf16_chains(int64_t) { return 0; }
constexpr int kBf16Products = 0;
#endif

}  // namespace

FmaPeak fma_peak(int64_t iterations, int num_threads, bool bf16) {
  const int products = bf16 ? kBf16Products : kLanes;
  std::vector<double> seconds(num_threads);
  volatile float sink = 0;
#pragma omp parallel for num_threads(num_threads) schedule(static, 1)
  for (int thread = 0; thread < num_threads; ++thread) {
    const auto start = std::chrono::steady_clock::now();
    sink = bf16 ? bf16_chains(iterations) : fp32_chains(iterations);
    seconds[thread] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  static_cast<void>(sink);
  return {2.0 * products * kChains * static_cast<double>(iterations) * num_threads,
          *std::max_element(seconds.begin(), seconds.end())};
}

}  // namespace MSVIT_ISA
}  // namespace msvit
