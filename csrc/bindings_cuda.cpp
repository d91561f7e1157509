// Python module msvit_kernels._cuda: the CUDA kernels. It links cudart statically and no library of the driver, so that
// it imports on machines without a GPU. Tensors arrive as addresses with sizes and strides in elements. Nothing is
// computed here, and only the types of arguments are checked.
#include <pybind11/pybind11.h>

#include "cuda/device.h"
#include "cuda/varlen_attention.h"
#include "named_arguments.h"

namespace py = pybind11;

namespace {

py::tuple device_count() {
  std::string reason;
  const int count = msvit::cuda::device_count(reason);
  return py::make_tuple(count, reason);
}

py::dict device_properties(int device) {
  const msvit::cuda::DeviceProperties properties = msvit::cuda::device_properties(device);
  py::dict result;
  result["name"] = properties.name;
  result["capability"] = py::make_tuple(properties.capability_major, properties.capability_minor);
  result["num_multiprocessors"] = properties.num_multiprocessors;
  result["shared_memory_per_block_bytes"] = properties.shared_memory_per_block_bytes;
  result["l2_cache_bytes"] = properties.l2_cache_bytes;
  result["total_memory_bytes"] = properties.total_memory_bytes;
  return result;
}

py::dict build_info() {
  py::dict info;
  info["device"] = "cuda";  // torch's name for the tensors that the kernels take
  info["architectures"] = MSVIT_CUDA_ARCHS;
#ifdef MSVIT_NO_FP16
  info["fp16"] = false;
#else
  info["fp16"] = true;
#endif
  info["runtime_version"] = msvit::cuda::runtime_version();
  info["driver_version"] = msvit::cuda::driver_version();
  return info;
}

// The arguments of a kernel and of its launch.
template <class Call>
struct Launch : Call {
  bool is_bf16;
  int device;
  uintptr_t stream;
};

// Named arguments: for the field of the same name, for a field of `in`, and for the strides of a tensor.
#define F(name) MSVIT_FIELD(Args, name, name)
#define IN(name) MSVIT_FIELD(Args, name, in.name)
#define STRIDES(name, rows) \
  MSVIT_FIELD(Args, name##_stride_token, rows.token_stride), MSVIT_FIELD(Args, name##_stride_head, rows.head_stride)

// The arguments in AttentionFields (msvit_kernels/native_fields.py), in the same order, then those of this module
// alone.
template <class Args>
msvit::Fields varlen_attention_inputs() {
  return {MSVIT_FIELD(Args, q, in.q.data),
          MSVIT_FIELD(Args, k, in.k.data),
          MSVIT_FIELD(Args, v, in.v.data),
          IN(cu_seqlens_q),
          IN(cu_seqlens_k),
          IN(key_weight),
          IN(batch),
          IN(total_q),
          IN(total_k),
          IN(num_heads),
          IN(head_dim),
          STRIDES(q, in.q),
          STRIDES(k, in.k),
          STRIDES(v, in.v),
          IN(softmax_scale),
          F(is_bf16),
          IN(max_seqlen_q),
          IN(max_seqlen_k),
          F(device),
          F(stream)};
}

void define_varlen_attention_fwd(py::module_& m) {
  using Args = Launch<msvit::cuda::AttentionForward>;
  msvit::define_named<Args>(
      m, "varlen_attention_fwd",
      [](const Args& args) { msvit::cuda::varlen_attention_fwd(args, args.is_bf16, args.device, args.stream); },
      varlen_attention_inputs<Args>() + msvit::Fields{F(out), F(lse)});
}

void define_varlen_attention_bwd(py::module_& m) {
  using Args = Launch<msvit::cuda::AttentionBackward>;
  msvit::define_named<Args>(
      m, "varlen_attention_bwd",
      [](const Args& args) { msvit::cuda::varlen_attention_bwd(args, args.is_bf16, args.device, args.stream); },
      varlen_attention_inputs<Args>() + msvit::Fields{MSVIT_FIELD(Args, dout, dout.data), STRIDES(dout, dout), F(out),
                                                      F(lse), F(dlse), F(dq), F(dk), F(dv), F(delta), F(dweight)});
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of msvit_kernels (internal)";
  m.def("build_info", &build_info);
  m.def("device_count", &device_count, "(number of GPUs, the runtime's error message if the query fails)");
  m.def("device_properties", &device_properties, py::arg("device"));
  define_varlen_attention_fwd(m);
  define_varlen_attention_bwd(m);
}
