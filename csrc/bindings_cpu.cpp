// Python module msvit_kernels._C: the CPU kernels. Tensors arrive as addresses (tensor.data_ptr()) with sizes and
// strides in elements; nothing is computed here and nothing is checked: callers are msvit_kernels/validation.py and
// msvit_kernels/cpu/.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/checks.h"
#include "cpu/fma_peak.h"
#include "cpu/isa.h"
#include "cpu/mixed_scale_embed.h"
#include "cpu/mixed_scale_layout.h"
#include "cpu/unpack_to_grid.h"
#include "cpu/varlen_attention.h"

namespace py = pybind11;

namespace {

using Triple = std::array<double, 3>;

// An address on its way into an argument structure: becomes whatever pointer the field is.
struct Pointer {
  uintptr_t address;
  template <class T>
  operator T*() const {
    return reinterpret_cast<T*>(address);
  }
};

Pointer field(uintptr_t address) { return {address}; }
template <class T>
T field(T value) {
  return value;
}

// Binds a kernel under one positional argument per field of its structure, in the structure's order: P an address, N a
// number of elements. A list that does not fit the fields is an error or a warning of the compiler.
template <class Args, class... Wire, class Function>
void bind(py::module_& m, const char* name, Function function) {
  m.def(name, [function](Wire... wire) { function(Args{field(wire)...}); }, py::call_guard<py::gil_scoped_release>());
}
using P = uintptr_t;
using N = int64_t;

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
  m.def("check_offsets", [](P offsets, N n, N total, N max_seqlen) {
    return static_cast<int>(msvit::check_offsets(Pointer{offsets}, n, total, max_seqlen));
  });
  m.def("check_range", [](P values, N n, N upper) { return msvit::check_range(Pointer{values}, n, upper); });
  m.def("fma_peak", &fma_peak, py::arg("iterations"), py::arg("num_threads"), py::arg("bf16"));

  bind<msvit::VarlenAttentionFwdArgs, P, P, P, P, P, P, P, P, N, N, N, N, N, N, N, N, N, N, N, float, bool, int>(
      m, "varlen_attention_fwd", [](const auto& args) { MSVIT_CALL_CHOSEN_ISA(varlen_attention_fwd, args); });
  bind<msvit::VarlenAttentionBwdArgs, P, P, P, P, P, P, P, P, P, P, P, P, P, P, N, N, N, N, N, N, N, N, N, N, N, N, N,
       float, bool, int>(m, "varlen_attention_bwd",
                         [](const auto& args) { MSVIT_CALL_CHOSEN_ISA(varlen_attention_bwd, args); });

  // The first thirteen fill the PatchSource.
  bind<msvit::MixedScaleEmbedFwdArgs, P, P, P, N, N, N, N, N, N, N, int, Triple, Triple, P, P, P, P, N, bool, int>(
      m, "mixed_scale_embed_fwd", [](const auto& args) { MSVIT_CALL_CHOSEN_ISA(mixed_scale_embed_fwd, args); });
  bind<msvit::MixedScaleEmbedBwdArgs, P, P, P, N, N, N, N, N, N, N, int, Triple, Triple, P, P, P, P, P, P, P, P, P, N,
       bool, int>(m, "mixed_scale_embed_bwd",
                  [](const auto& args) { MSVIT_CALL_CHOSEN_ISA(mixed_scale_embed_bwd, args); });

  bind<msvit::MixedScaleLayoutOffsetsArgs, P, P, P, P, N, N, N, N, int>(
      m, "mixed_scale_layout_offsets",
      [](const auto& args) { MSVIT_CALL_CHOSEN_ISA(mixed_scale_layout_offsets, args); });
  bind<msvit::MixedScaleLayoutFwdArgs, P, P, P, P, P, N, N, N, N, N, N, int>(
      m, "mixed_scale_layout_fwd", [](const auto& args) { MSVIT_CALL_CHOSEN_ISA(mixed_scale_layout_fwd, args); });

  bind<msvit::UnpackToGridArgs, P, P, P, P, N, N, N, N, N, N, N, bool, int>(
      m, "unpack_to_grid_fwd", [](const auto& args) { MSVIT_CALL_CHOSEN_ISA(unpack_to_grid_fwd, args); });
  bind<msvit::UnpackToGridArgs, P, P, P, P, N, N, N, N, N, N, N, bool, int>(
      m, "unpack_to_grid_bwd", [](const auto& args) { MSVIT_CALL_CHOSEN_ISA(unpack_to_grid_bwd, args); });
}
