// Python module _emulator_selftest.
#include <pybind11/stl.h>

#include "emulator_binding.h"
#include "selftest.h"

namespace {

void run(const std::string& name, uintptr_t input, uintptr_t output, int blocks, int threads, int shared_bytes,
         int argument) {
  msvit::cuda::run_selftest(name, blocks, threads, shared_bytes,
                            {reinterpret_cast<const uint32_t*>(input), reinterpret_cast<uint32_t*>(output), argument});
}

}  // namespace

PYBIND11_MODULE(_emulator_selftest, m) {
  namespace py = pybind11;
  m.def("names", &msvit::cuda::selftest_names);
  m.def("run", &run, py::arg("name"), py::arg("input"), py::arg("output"), py::arg("blocks"), py::arg("threads"),
        py::arg("shared_bytes"), py::arg("argument"), py::call_guard<py::gil_scoped_release>());
  msvit::emulator::define_emulator(m);
}
