// Python module _cuda_emulated: all of _cuda, and what the emulator counted.
#include "bindings_cuda.cpp"
#include "statistics_binding.h"

PYBIND11_MODULE(_cuda_emulated, m) {
  pybind11_init__cuda(m);
  msvit::emulator::define_statistics(m);
}
