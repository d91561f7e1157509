// Small kernels, right ones and wrong ones, for tests/cuda_emulator/test_cuda_emulator.py.
#include <stdexcept>
#include <utility>

#include "cuda/device_code.cuh"
#include "cuda/launch.cuh"
#include "selftest.h"

namespace msvit::cuda {
namespace {

__device__ __forceinline__ uint32_t* words(unsigned char* memory) { return reinterpret_cast<uint32_t*>(memory); }

// ---- right ones

// Input: fragments of a, b and d, lane by lane, 4 + 2 + 4 words. Output: d, 4 words.
template <class T>
__global__ void mma_kernel(const __grid_constant__ SelfTest call) {
  const uint32_t* in = call.input + 10 * threadIdx.x;
  const uint32_t a[4] = {in[0], in[1], in[2], in[3]};
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(in[6 + i]);
  mma<T>(d, a, in[4], in[5]);
  for (int i = 0; i < 4; ++i) call.output[4 * threadIdx.x + i] = __float_as_uint(d[i]);
}

// Output: two floats packed and unpacked again, for each thread's two input floats.
template <class T>
__global__ void pack_kernel(const __grid_constant__ SelfTest call) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const uint32_t pair = pack<T>(__uint_as_float(call.input[2 * i]), __uint_as_float(call.input[2 * i + 1]));
  const float2 back = unpack<T>(pair);
  call.output[3 * i] = pair;
  call.output[3 * i + 1] = __float_as_uint(back.x);
  call.output[3 * i + 2] = __float_as_uint(back.y);
}

// Copies 32 rows of `argument` bytes to shared memory and loads the first 16 bytes of each as matrices.
template <bool TRANSPOSED>
__global__ void load_kernel(const __grid_constant__ SelfTest call) {
  MSVIT_SHARED_MEMORY(memory);
  const uint32_t row = shared_address(memory) + threadIdx.x * call.argument;
  copy_async_16(row, call.input + 4 * threadIdx.x, true);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  uint32_t r[4];
  TRANSPOSED ? load_matrices_transposed(r, row) : load_matrices(r, row);
  for (int i = 0; i < 4; ++i) call.output[4 * threadIdx.x + i] = r[i];
}

// Three groups of copies, the middle one of zeros; output: what is there once all but `argument` groups are complete.
__global__ void copies_kernel(const __grid_constant__ SelfTest call) {
  MSVIT_SHARED_MEMORY(memory);
  const uint32_t start = shared_address(memory) + 48 * threadIdx.x;
  for (int group = 0; group < 3; ++group) {
    copy_async_16(start + 16 * group, group == 1 ? nullptr : call.input + 4 * group, group != 1);
    copy_async_commit();
  }
  if (call.argument == 0) copy_async_wait<0>();
  if (call.argument == 1) copy_async_wait<1>();
  if (call.argument == 2) copy_async_wait<2>();
  const int arrived = 3 - call.argument;
  for (int i = 0; i < 4 * arrived; ++i) call.output[12 * threadIdx.x + i] = words(memory)[12 * threadIdx.x + i];
}

__global__ void uninitialised_kernel(const __grid_constant__ SelfTest call) {
  MSVIT_SHARED_MEMORY(memory);
  call.output[threadIdx.x] = words(memory)[threadIdx.x];
}

__global__ void warp_kernel(const __grid_constant__ SelfTest call) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const uint32_t value = call.input[threadIdx.x];
  uint32_t* out = call.output + 6 * threadIdx.x;
  out[0] = __shfl_sync(0xffffffffu, value, (lane + 5) % 32);
  out[1] = __shfl_xor_sync(0xffffffffu, value, 9);
  out[2] = __ballot_sync(0xffffffffu, value % 3 == 0);
  out[3] = __match_any_sync(0xffffffffu, value % 4);
  // Halves of a warp that meet apart.
  out[4] = lane < 16 ? __shfl_sync(0x0000ffffu, value, 3) : __shfl_sync(0xffff0000u, value, 20);
  out[5] = __shfl_sync(0xffffffffu, value, 1, 8);
}

// Sums the inputs of a block: by shared atomics, and in a tree with barriers.
__global__ void sum_kernel(const __grid_constant__ SelfTest call) {
  MSVIT_SHARED_MEMORY(memory);
  uint32_t* tree = words(memory) + 4;
  int* total = reinterpret_cast<int*>(memory);
  const int thread = static_cast<int>(threadIdx.x), count = static_cast<int>(blockDim.x);
  if (thread == 0) *total = 0;
  tree[thread] = call.input[blockIdx.x * count + thread];
  __syncthreads();
  atomicAdd(total, static_cast<int>(tree[thread]));
  for (int half = count / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) tree[thread] += tree[thread + half];
  }
  __syncthreads();
  if (thread == 0) {
    call.output[2 * blockIdx.x] = static_cast<uint32_t>(*total);
    call.output[2 * blockIdx.x + 1] = tree[0];
  }
}

// Lane i writes word i * argument of shared memory.
__global__ void stores_kernel(const __grid_constant__ SelfTest call) {
  MSVIT_SHARED_MEMORY(memory);
  store_shared_32(shared_address(memory) + 4 * call.argument * threadIdx.x, 1);
}

__global__ void products_kernel(const __grid_constant__ SelfTest call) {
  float d[4] = {0, 0, 0, 0};
  const uint32_t a[4] = {0, 0, 0, 0};
  for (int i = 0; i < call.argument; ++i) mma<bf16>(d, a, 0, 0);
  call.output[threadIdx.x] = __float_as_uint(d[0]);
}

// ---- wrong ones

// Neighbours swap words of shared memory. argument 0: with a barrier of the block between, 1: __syncwarp, 2: nothing,
// 3: a shuffle, which orders no memory.
template <bool PLAIN>
__global__ void exchange_kernel(const __grid_constant__ SelfTest call) {
  MSVIT_SHARED_MEMORY(memory);
  const uint32_t own = threadIdx.x, other = own ^ 1;
  if (PLAIN) {
    words(memory)[own] = own;
  } else {
    store_shared_32(shared_address(memory) + 4 * own, own);
  }
  if (call.argument == 0) __syncthreads();
  if (call.argument == 1) __syncwarp();
  if (call.argument == 3) call.output[own] = __shfl_sync(0xffffffffu, own, 0);
  call.output[own] = words(memory)[other];
}

// Warp 0 reads what warp 1 overwrites; argument 1: with a barrier between.
__global__ void overwrite_kernel(const __grid_constant__ SelfTest call) {
  MSVIT_SHARED_MEMORY(memory);
  const uint32_t row = shared_address(memory) + 16 * (threadIdx.x % 32);
  uint32_t r[4] = {0, 0, 0, 0};
  if (threadIdx.x < 32) load_matrices(r, row);
  if (call.argument == 1) __syncthreads();
  if (threadIdx.x >= 32) copy_async_16(row, call.input, true);
  call.output[threadIdx.x] = r[0];
}

__global__ void write_twice_kernel(const __grid_constant__ SelfTest) {
  MSVIT_SHARED_MEMORY(memory);
  words(memory)[threadIdx.x / 2] = threadIdx.x;
}

// Blocks and threads write global memory, `argument` words apart; argument 100: every block reads what block 0 writes.
__global__ void global_kernel(const __grid_constant__ SelfTest call) {
  const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (call.argument < 100 || thread == 0) call.output[thread * (call.argument % 100)] = 1;
  if (call.argument == 100 && blockIdx.x > 0) call.output[thread] = call.output[0] + 1;
}

// argument 0: reads a copy without waiting; 1: another thread reads it after its owner waited, without a barrier.
__global__ void early_read_kernel(const __grid_constant__ SelfTest call) {
  MSVIT_SHARED_MEMORY(memory);
  copy_async_16(shared_address(memory) + 16 * threadIdx.x, call.input, true);
  copy_async_commit();
  if (call.argument == 1) copy_async_wait<0>();
  const uint32_t read = call.argument == 1 ? threadIdx.x ^ 1 : threadIdx.x;
  call.output[threadIdx.x] = words(memory)[4 * read];
}

// argument 0: half a warp in a product; 1: half a block at a barrier; 2: lanes at different lines.
__global__ void diverged_kernel(const __grid_constant__ SelfTest call) {
  float d[4] = {0, 0, 0, 0};
  const uint32_t a[4] = {0, 0, 0, 0};
  const bool first = threadIdx.x < blockDim.x / 2;
  if (call.argument == 0 && first) mma<bf16>(d, a, 0, 0);
  if (call.argument == 1 && first) __syncthreads();
  if (call.argument == 2) {
    if (threadIdx.x % 2 == 0) {
      mma<bf16>(d, a, 0, 0);
    } else {
      mma<bf16>(d, a, 0, 0);
    }
  }
  call.output[threadIdx.x] = __float_as_uint(d[0]);
}

// Access number `argument` leaves shared memory or is not aligned.
__global__ void stray_kernel(const __grid_constant__ SelfTest call) {
  MSVIT_SHARED_MEMORY(memory);
  const uint32_t start = shared_address(memory);
  uint32_t r[4] = {0, 0, 0, 0};
  if (call.argument == 0) load_matrices(r, start + 16 * 31);
  if (call.argument == 1) load_matrices(r, start + 8);
  if (call.argument == 2) store_shared_32(start + 496, 0);
  if (call.argument == 3) copy_async_16(start + 480, reinterpret_cast<const char*>(call.input) + 4, true);
  if (call.argument == 4) copy_async_16(start + 8, call.input, true);
  if (call.argument == 5) words(memory)[124] = 0;
  if (call.argument == 6) words(memory)[-1] = 0;
  if (call.argument == 7) store_shared_32(0, 0);
  if (call.argument == 8) __shfl_sync(0x0000ffffu, 1, 0);
  if (call.argument == 9) *reinterpret_cast<float2*>(memory + 4) = make_float2(0, 0);
  if (call.argument == 10) r[call.argument - 6] = 0;
  call.output[0] = r[0];
}

// ---- by name

struct Named {
  const char* name;
  void (*kernel)(SelfTest);
};

constexpr Named kKernels[] = {
    {"mma_bf16", mma_kernel<bf16>},
    {"mma_fp16", mma_kernel<fp16>},
    {"pack_bf16", pack_kernel<bf16>},
    {"pack_fp16", pack_kernel<fp16>},
    {"load", load_kernel<false>},
    {"load_transposed", load_kernel<true>},
    {"copies", copies_kernel},
    {"uninitialised", uninitialised_kernel},
    {"warp", warp_kernel},
    {"sum", sum_kernel},
    {"stores", stores_kernel},
    {"products", products_kernel},
    {"exchange", exchange_kernel<false>},
    {"exchange_plain", exchange_kernel<true>},
    {"overwrite", overwrite_kernel},
    {"write_twice", write_twice_kernel},
    {"global", global_kernel},
    {"early_read", early_read_kernel},
    {"diverged", diverged_kernel},
    {"stray", stray_kernel},
};

}  // namespace

std::vector<std::string> selftest_names() {
  std::vector<std::string> names;
  for (const Named& named : kKernels) names.push_back(named.name);
  return names;
}

void run_selftest(const std::string& name, int blocks, int threads, int shared_bytes, const SelfTest& call) {
  const DeviceGuard guard(0);
  for (const Named& named : kKernels)
    if (name == named.name) return launch(named.kernel, blocks, threads, shared_bytes, 0, call);
  throw std::runtime_error("no kernel " + name);
}

}  // namespace msvit::cuda
