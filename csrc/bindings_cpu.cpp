// Python module msvit_kernels._C: the CPU kernels. Tensors arrive as addresses (tensor.data_ptr()) with sizes and
// strides in elements. Nothing is computed here, and only the types of arguments are checked: the callers,
// validation.py and cpu/ of msvit_kernels, check the rest.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/checks.h"
#include "cpu/fork.h"
#include "cpu/mixed_scale_embed.h"
#include "cpu/mixed_scale_layout.h"
#include "cpu/simd/fma_peak.h"
#include "cpu/simd/isa.h"
#include "cpu/unpack_to_grid.h"
#include "cpu/varlen_attention.h"
#include "named_arguments.h"

namespace py = pybind11;

namespace {

// A named argument for the field of the same name.
#define F(name) MSVIT_FIELD(Args, name, name)

template <class Args>
msvit::Fields varlen_attention_inputs() {
  return {F(q),
          F(k),
          F(v),
          F(cu_seqlens_q),
          F(cu_seqlens_k),
          F(key_weight),
          F(batch),
          F(total_q),
          F(total_k),
          F(num_heads),
          F(head_dim),
          F(q_stride_token),
          F(q_stride_head),
          F(k_stride_token),
          F(k_stride_head),
          F(v_stride_token),
          F(v_stride_head),
          F(softmax_scale),
          F(is_bf16),
          F(num_threads)};
}

void define_varlen_attention_fwd(py::module_& m) {
  using Args = msvit::VarlenAttentionFwdArgs;
  msvit::define_named<Args>(
      m, "varlen_attention_fwd", [](const Args& args) { MSVIT_CALL_CHOSEN_ISA(varlen_attention_fwd, args); },
      varlen_attention_inputs<Args>() + msvit::Fields{F(out), F(lse)});
}

void define_varlen_attention_bwd(py::module_& m) {
  using Args = msvit::VarlenAttentionBwdArgs;
  msvit::define_named<Args>(
      m, "varlen_attention_bwd", [](const Args& args) { MSVIT_CALL_CHOSEN_ISA(varlen_attention_bwd, args); },
      varlen_attention_inputs<Args>() + msvit::Fields{F(dout), F(dout_stride_token), F(dout_stride_head), F(dlse),
                                                      F(out), F(lse), F(dq), F(dk), F(dv), F(dweight)});
}

template <class Args>
msvit::Fields mixed_scale_embed_inputs() {
  return {F(images),       F(batch_index), F(token_index),  F(batch),      F(height),     F(width),
          F(total_tokens), F(patch_size),  F(scale_factor), F(num_prefix), F(pixel_type), F(mean),
          F(std),          F(weight),      F(dim),          F(is_bf16),    F(num_threads)};
}

void define_mixed_scale_embed_fwd(py::module_& m) {
  using Args = msvit::MixedScaleEmbedFwdArgs;
  msvit::define_named<Args>(
      m, "mixed_scale_embed_fwd", [](const Args& args) { MSVIT_CALL_CHOSEN_ISA(mixed_scale_embed_fwd, args); },
      mixed_scale_embed_inputs<Args>() + msvit::Fields{F(bias), F(table), F(out)});
}

void define_mixed_scale_embed_bwd(py::module_& m) {
  using Args = msvit::MixedScaleEmbedBwdArgs;
  msvit::define_named<Args>(
      m, "mixed_scale_embed_bwd", [](const Args& args) { MSVIT_CALL_CHOSEN_ISA(mixed_scale_embed_bwd, args); },
      mixed_scale_embed_inputs<Args>() + msvit::Fields{F(dout), F(fine_mask), F(region_start), F(cu_seqlens),
                                                       F(dimages), F(dweight), F(dbias), F(dtable)});
}

void define_mixed_scale_layout_offsets(py::module_& m) {
  using Args = msvit::MixedScaleLayoutOffsetsArgs;
  msvit::define_named<Args>(m, "mixed_scale_layout_offsets",
                            [](const Args& args) { MSVIT_CALL_CHOSEN_ISA(mixed_scale_layout_offsets, args); },
                            {F(fine_mask), F(num_tokens), F(cu_seqlens), F(region_start), F(batch), F(num_regions),
                             F(scale_factor), F(num_prefix), F(num_threads)});
}

void define_mixed_scale_layout_fwd(py::module_& m) {
  using Args = msvit::MixedScaleLayoutFwdArgs;
  msvit::define_named<Args>(m, "mixed_scale_layout_fwd",
                            [](const Args& args) { MSVIT_CALL_CHOSEN_ISA(mixed_scale_layout_fwd, args); },
                            {F(fine_mask), F(cu_seqlens), F(region_start), F(batch_index), F(token_index), F(batch),
                             F(rows), F(columns), F(total_tokens), F(scale_factor), F(num_prefix), F(num_threads)});
}

void define_unpack_to_grid(py::module_& m) {
  using Args = msvit::UnpackToGridArgs;
  const msvit::Fields fields{F(fine_mask),    F(region_start), F(tokens),       F(grid),         F(batch),
                             F(rows),         F(columns),      F(scale_factor), F(total_tokens), F(dim),
                             F(token_stride), F(is_bf16),      F(num_threads)};
  msvit::define_named<Args>(
      m, "unpack_to_grid_fwd", [](const Args& args) { MSVIT_CALL_CHOSEN_ISA(unpack_to_grid_fwd, args); }, fields);
  msvit::define_named<Args>(
      m, "unpack_to_grid_bwd", [](const Args& args) { MSVIT_CALL_CHOSEN_ISA(unpack_to_grid_bwd, args); }, fields);
}

bool valid_offsets(uintptr_t offsets, int64_t n, int64_t total, int64_t max_seqlen) {
  return msvit::valid_offsets(reinterpret_cast<const int32_t*>(offsets), n, total, max_seqlen);
}

bool valid_packing(uintptr_t offsets, int64_t n, int64_t total, int64_t max_seqlen, int64_t num_prefix,
                   uintptr_t num_tokens, uintptr_t batch_index) {
  return msvit::valid_packing(reinterpret_cast<const int32_t*>(offsets), n, total, max_seqlen, num_prefix,
                              reinterpret_cast<const int32_t*>(num_tokens),
                              reinterpret_cast<const int32_t*>(batch_index));
}

bool mixed_scale_layout_matches(uintptr_t fine_mask, uintptr_t region_start, uintptr_t cu_seqlens,
                                uintptr_t batch_index, uintptr_t token_index, int64_t batch, int64_t rows,
                                int64_t columns, int64_t total_tokens, int64_t scale_factor, int64_t num_prefix) {
  const msvit::MixedScaleLayoutCheckArgs args{reinterpret_cast<const uint8_t*>(fine_mask),
                                              reinterpret_cast<const int32_t*>(region_start),
                                              reinterpret_cast<const int32_t*>(cu_seqlens),
                                              reinterpret_cast<const int32_t*>(batch_index),
                                              reinterpret_cast<const int32_t*>(token_index),
                                              batch,
                                              rows,
                                              columns,
                                              total_tokens,
                                              scale_factor,
                                              num_prefix};
  MSVIT_CALL_CHOSEN_ISA(mixed_scale_layout_matches, args)
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

// Returns (floating-point operations, seconds of the slowest thread).
std::pair<double, double> fma_peak(int64_t iterations, int num_threads, bool bf16) {
  const py::gil_scoped_release release;
  const auto measure = [&] { MSVIT_CALL_CHOSEN_ISA(fma_peak, iterations, num_threads, bf16) };
  const msvit::FmaPeak peak = measure();
  return {peak.flop, peak.seconds};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of msvit_kernels (internal)";
  msvit::end_threads_before_fork();
  m.def("cpu_info", &cpu_info);
  m.def("valid_offsets", &valid_offsets, py::arg("offsets"), py::arg("n"), py::arg("total"), py::arg("max_seqlen"));
  m.def("valid_packing", &valid_packing, py::arg("offsets"), py::arg("n"), py::arg("total"), py::arg("max_seqlen"),
        py::arg("num_prefix"), py::arg("num_tokens"), py::arg("batch_index"));
  m.def("mixed_scale_layout_matches", &mixed_scale_layout_matches, py::arg("fine_mask"), py::arg("region_start"),
        py::arg("cu_seqlens"), py::arg("batch_index"), py::arg("token_index"), py::arg("batch"), py::arg("rows"),
        py::arg("columns"), py::arg("total_tokens"), py::arg("scale_factor"), py::arg("num_prefix"));
  m.def("fma_peak", &fma_peak, py::arg("iterations"), py::arg("num_threads"), py::arg("bf16"));
  define_varlen_attention_fwd(m);
  define_varlen_attention_bwd(m);
  define_mixed_scale_embed_fwd(m);
  define_mixed_scale_embed_bwd(m);
  define_mixed_scale_layout_offsets(m);
  define_mixed_scale_layout_fwd(m);
  define_unpack_to_grid(m);
}
