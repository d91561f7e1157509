// Python module msvit_kernels._C: the CPU kernels. Tensors arrive as addresses (tensor.data_ptr()) with sizes and strides in
// elements; nothing is computed here and nothing is checked: callers are msvit_kernels/validation.py and msvit_kernels/cpu/.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/checks.h"
#include "cpu/fma_peak.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace {

template <typename T>
const T* in(uintptr_t address) {
  return reinterpret_cast<const T*>(address);
}

py::list names(const std::vector<msvit::Isa>& isas) {
  py::list result;
  for (const msvit::Isa isa : isas) result.append(msvit::isa_name(isa));
  return result;
}

py::dict cpu_info() {
  py::dict info;
  info["isa_compiled"] = names(msvit::compiled_isas());
  info["isa_supported"] = names(msvit::supported_isas());
  info["isa_chosen"] = msvit::isa_name(msvit::chosen_isa());
#ifdef _OPENMP
  info["openmp"] = true;
  info["processors"] = omp_get_num_procs();
#else
  info["openmp"] = false;
  info["processors"] = 1;
#endif
  info["compiler"] = MSVIT_COMPILER;
  info["sanitize"] = MSVIT_SANITIZE;
  return info;
}

// (operations, seconds of the slowest thread)
std::pair<double, double> fma_peak(int64_t iterations, int num_threads, bool bf16) {
  const py::gil_scoped_release release;
  msvit::FmaPeakArgs args{iterations, num_threads, bf16, 0, 0};
  msvit::fma_peak(args);
  return {args.flop, args.seconds};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of msvit_kernels (internal)";
  m.def("cpu_info", &cpu_info);
  m.def("fma_peak", &fma_peak, py::arg("iterations"), py::arg("num_threads"), py::arg("bf16"));
  m.def("check_offsets", [](uintptr_t offsets, int64_t n, int64_t total, int64_t max_seqlen) {
    return static_cast<int>(msvit::check_offsets(in<int32_t>(offsets), n, total, max_seqlen));
  });
  m.def("check_range", [](uintptr_t values, int64_t n, int64_t upper) {
    return msvit::check_range(in<int32_t>(values), n, upper);
  });
}
