// Kernels that test the emulator, by name. Each takes one array of inputs and one of outputs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace msvit::cuda {

struct SelfTest {
  const uint32_t* input;
  uint32_t* output;
  int argument;
};

std::vector<std::string> selftest_names();

// Throws std::runtime_error if the name is unknown or the kernel makes an error.
void run_selftest(const std::string& name, int blocks, int threads, int shared_bytes, const SelfTest& call);

}  // namespace msvit::cuda
