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

using Address = uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

template <typename T = void>
const T* in(Address address) {
  return reinterpret_cast<const T*>(address);
}

template <typename T = void>
T* out(Address address) {
  return reinterpret_cast<T*>(address);
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

using Triple = std::array<double, 3>;

// The arguments of each function below are the fields of its argument structure, in their order.

void varlen_attention_fwd(Address q, Address k, Address v, Address cu_seqlens_q, Address cu_seqlens_k,
                          Address key_weight, Address out_, Address lse, int64_t batch, int64_t total_q,
                          int64_t total_k, int64_t num_heads, int64_t head_dim, int64_t q_stride_token,
                          int64_t q_stride_head, int64_t k_stride_token, int64_t k_stride_head, int64_t v_stride_token,
                          int64_t v_stride_head, float softmax_scale, bool is_bf16, int num_threads) {
  const msvit::VarlenAttentionFwdArgs args{in(q),
                                           in(k),
                                           in(v),
                                           in<int32_t>(cu_seqlens_q),
                                           in<int32_t>(cu_seqlens_k),
                                           in<float>(key_weight),
                                           out(out_),
                                           out<float>(lse),
                                           batch,
                                           total_q,
                                           total_k,
                                           num_heads,
                                           head_dim,
                                           q_stride_token,
                                           q_stride_head,
                                           k_stride_token,
                                           k_stride_head,
                                           v_stride_token,
                                           v_stride_head,
                                           softmax_scale,
                                           is_bf16,
                                           num_threads};
  MSVIT_CALL_CHOSEN_ISA(varlen_attention_fwd, args);
}

void varlen_attention_bwd(Address dout, Address dlse, Address q, Address k, Address v, Address out_, Address lse,
                          Address cu_seqlens_q, Address cu_seqlens_k, Address key_weight, Address dq, Address dk,
                          Address dv, Address dweight, int64_t batch, int64_t total_q, int64_t total_k,
                          int64_t num_heads, int64_t head_dim, int64_t dout_stride_token, int64_t dout_stride_head,
                          int64_t q_stride_token, int64_t q_stride_head, int64_t k_stride_token, int64_t k_stride_head,
                          int64_t v_stride_token, int64_t v_stride_head, float softmax_scale, bool is_bf16,
                          int num_threads) {
  const msvit::VarlenAttentionBwdArgs args{in(dout),
                                           in<float>(dlse),
                                           in(q),
                                           in(k),
                                           in(v),
                                           in(out_),
                                           in<float>(lse),
                                           in<int32_t>(cu_seqlens_q),
                                           in<int32_t>(cu_seqlens_k),
                                           in<float>(key_weight),
                                           out(dq),
                                           out(dk),
                                           out(dv),
                                           out<float>(dweight),
                                           batch,
                                           total_q,
                                           total_k,
                                           num_heads,
                                           head_dim,
                                           dout_stride_token,
                                           dout_stride_head,
                                           q_stride_token,
                                           q_stride_head,
                                           k_stride_token,
                                           k_stride_head,
                                           v_stride_token,
                                           v_stride_head,
                                           softmax_scale,
                                           is_bf16,
                                           num_threads};
  MSVIT_CALL_CHOSEN_ISA(varlen_attention_bwd, args);
}

void mixed_scale_embed_fwd(Address images, Address batch_index, Address token_index, int64_t batch, int64_t height,
                           int64_t width, int64_t total_tokens, int64_t patch_size, int64_t scale_factor,
                           int64_t num_prefix, int pixel_type, Triple mean, Triple std, Address weight, Address bias,
                           Address table, Address out_, int64_t dim, bool is_bf16, int num_threads) {
  const msvit::PatchSource source{in(images),
                                  in<int32_t>(batch_index),
                                  in<int32_t>(token_index),
                                  batch,
                                  height,
                                  width,
                                  total_tokens,
                                  patch_size,
                                  scale_factor,
                                  num_prefix,
                                  static_cast<msvit::PixelType>(pixel_type),
                                  mean,
                                  std};
  const msvit::MixedScaleEmbedFwdArgs args{source,    in(weight), in(bias), in(table),
                                           out(out_), dim,        is_bf16,  num_threads};
  MSVIT_CALL_CHOSEN_ISA(mixed_scale_embed_fwd, args);
}

void mixed_scale_embed_bwd(Address images, Address batch_index, Address token_index, int64_t batch, int64_t height,
                           int64_t width, int64_t total_tokens, int64_t patch_size, int64_t scale_factor,
                           int64_t num_prefix, int pixel_type, Triple mean, Triple std, Address dout, Address weight,
                           Address fine_mask, Address region_start, Address cu_seqlens, Address dimages,
                           Address dweight, Address dbias, Address dtable, int64_t dim, bool is_bf16, int num_threads) {
  const msvit::PatchSource source{in(images),
                                  in<int32_t>(batch_index),
                                  in<int32_t>(token_index),
                                  batch,
                                  height,
                                  width,
                                  total_tokens,
                                  patch_size,
                                  scale_factor,
                                  num_prefix,
                                  static_cast<msvit::PixelType>(pixel_type),
                                  mean,
                                  std};
  const msvit::MixedScaleEmbedBwdArgs args{source,
                                           in(dout),
                                           in(weight),
                                           in<uint8_t>(fine_mask),
                                           in<int32_t>(region_start),
                                           in<int32_t>(cu_seqlens),
                                           out(dimages),
                                           out(dweight),
                                           out(dbias),
                                           out(dtable),
                                           dim,
                                           is_bf16,
                                           num_threads};
  MSVIT_CALL_CHOSEN_ISA(mixed_scale_embed_bwd, args);
}

void mixed_scale_layout_offsets(Address fine_mask, Address num_tokens, Address cu_seqlens, Address region_start,
                                int64_t batch, int64_t num_regions, int64_t scale_factor, int64_t num_prefix,
                                int num_threads) {
  const msvit::MixedScaleLayoutOffsetsArgs args{in<uint8_t>(fine_mask),
                                                out<int32_t>(num_tokens),
                                                out<int32_t>(cu_seqlens),
                                                out<int32_t>(region_start),
                                                batch,
                                                num_regions,
                                                scale_factor,
                                                num_prefix,
                                                num_threads};
  MSVIT_CALL_CHOSEN_ISA(mixed_scale_layout_offsets, args);
}

void mixed_scale_layout_fwd(Address fine_mask, Address cu_seqlens, Address region_start, Address batch_index,
                            Address token_index, int64_t batch, int64_t rows, int64_t columns, int64_t total_tokens,
                            int64_t scale_factor, int64_t num_prefix, int num_threads) {
  const msvit::MixedScaleLayoutFwdArgs args{in<uint8_t>(fine_mask),
                                            in<int32_t>(cu_seqlens),
                                            in<int32_t>(region_start),
                                            out<int32_t>(batch_index),
                                            out<int32_t>(token_index),
                                            batch,
                                            rows,
                                            columns,
                                            total_tokens,
                                            scale_factor,
                                            num_prefix,
                                            num_threads};
  MSVIT_CALL_CHOSEN_ISA(mixed_scale_layout_fwd, args);
}

msvit::UnpackToGridArgs unpack_args(Address fine_mask, Address region_start, Address tokens, Address grid,
                                    int64_t batch, int64_t rows, int64_t columns, int64_t scale_factor,
                                    int64_t total_tokens, int64_t dim, int64_t token_stride, bool is_bf16,
                                    int num_threads) {
  return {in<uint8_t>(fine_mask),
          in<int32_t>(region_start),
          out(tokens),
          out(grid),
          batch,
          rows,
          columns,
          scale_factor,
          total_tokens,
          dim,
          token_stride,
          is_bf16,
          num_threads};
}

void unpack_to_grid_fwd(const msvit::UnpackToGridArgs& args) { MSVIT_CALL_CHOSEN_ISA(unpack_to_grid_fwd, args); }
void unpack_to_grid_bwd(const msvit::UnpackToGridArgs& args) { MSVIT_CALL_CHOSEN_ISA(unpack_to_grid_bwd, args); }

// Binds f(args) under the parameters of `unpack_args`.
template <typename... Parameters>
auto with_unpack_args(void (*f)(const msvit::UnpackToGridArgs&), msvit::UnpackToGridArgs (*)(Parameters...)) {
  return [f](Parameters... parameters) { f(unpack_args(parameters...)); };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of msvit_kernels (internal)";
  m.def("cpu_info", &cpu_info);
  m.def("check_offsets", [](Address offsets, int64_t n, int64_t total, int64_t max_seqlen) {
    return static_cast<int>(msvit::check_offsets(in<int32_t>(offsets), n, total, max_seqlen));
  });
  m.def("check_range",
        [](Address values, int64_t n, int64_t upper) { return msvit::check_range(in<int32_t>(values), n, upper); });
  m.def("fma_peak", &fma_peak, py::arg("iterations"), py::arg("num_threads"), py::arg("bf16"));
  m.def("varlen_attention_fwd", &varlen_attention_fwd, Release());
  m.def("varlen_attention_bwd", &varlen_attention_bwd, Release());
  m.def("mixed_scale_embed_fwd", &mixed_scale_embed_fwd, Release());
  m.def("mixed_scale_embed_bwd", &mixed_scale_embed_bwd, Release());
  m.def("mixed_scale_layout_offsets", &mixed_scale_layout_offsets, Release());
  m.def("mixed_scale_layout_fwd", &mixed_scale_layout_fwd, Release());
  m.def("unpack_to_grid_fwd", with_unpack_args(&unpack_to_grid_fwd, &unpack_args), Release());
  m.def("unpack_to_grid_bwd", with_unpack_args(&unpack_to_grid_bwd, &unpack_args), Release());
}
