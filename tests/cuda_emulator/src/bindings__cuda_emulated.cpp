// Python module _cuda_emulated: all of _cuda for CPU tensors, and the emulator's own functions.
#include "bindings_cuda.cpp"
#include "emulator_binding.h"

namespace {

py::dict emulated_build_info() {
  py::dict info = build_info();
  info["device"] = "cpu";
  return info;
}

}  // namespace

PYBIND11_MODULE(_cuda_emulated, m) {
  pybind11_init__cuda(m);
  m.attr("build_info") = py::cpp_function(&emulated_build_info, py::name("build_info"));
  msvit::emulator::define_emulator(m);
}
