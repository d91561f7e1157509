// Python module msvit_kernels._cuda: the CUDA kernels. Links cudart statically and nothing of the driver, so that it
// imports without a GPU. Tensors arrive as addresses with sizes and strides in elements; nothing is computed here.
#include <pybind11/pybind11.h>

#include "cuda/device.h"
#include "cuda/varlen_attention.h"

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
  info["architectures"] = MSVIT_CUDA_ARCHS;
  info["runtime_version"] = msvit::cuda::runtime_version();
  info["driver_version"] = msvit::cuda::driver_version();
  return info;
}

// An address on its way into a structure: becomes whatever pointer the field is.
struct Pointer {
  uintptr_t address;
  template <class T>
  operator T*() const {
    return reinterpret_cast<T*>(address);
  }
};

using P = uintptr_t;
using N = int64_t;
using I = int32_t;

msvit::cuda::Attention attention(P q, N q_token, N q_head, P k, N k_token, N k_head, P v, N v_token, N v_head, P cu_q,
                                 P cu_k, P weight, N total_q, N total_k, I batch, I num_heads, I head_dim, I max_q,
                                 I max_k, float scale) {
  return {{Pointer{q}, q_token, q_head},
          {Pointer{k}, k_token, k_head},
          {Pointer{v}, v_token, v_head},
          Pointer{cu_q},
          Pointer{cu_k},
          Pointer{weight},
          total_q,
          total_k,
          batch,
          num_heads,
          head_dim,
          max_q,
          max_k,
          scale};
}

// Arguments: those of `attention`, then the other fields of the structure, then dtype, device and stream.
void varlen_attention_fwd(P q, N q_token, N q_head, P k, N k_token, N k_head, P v, N v_token, N v_head, P cu_q, P cu_k,
                          P weight, N total_q, N total_k, I batch, I num_heads, I head_dim, I max_q, I max_k,
                          float scale, P out, P lse, bool is_bf16, int device, P stream) {
  const auto in = attention(q, q_token, q_head, k, k_token, k_head, v, v_token, v_head, cu_q, cu_k, weight, total_q,
                            total_k, batch, num_heads, head_dim, max_q, max_k, scale);
  msvit::cuda::varlen_attention_fwd({in, Pointer{out}, Pointer{lse}}, is_bf16, device, stream);
}

void varlen_attention_bwd(P q, N q_token, N q_head, P k, N k_token, N k_head, P v, N v_token, N v_head, P cu_q, P cu_k,
                          P weight, N total_q, N total_k, I batch, I num_heads, I head_dim, I max_q, I max_k,
                          float scale, P dout, N dout_token, N dout_head, P out, P lse, P dlse, P dq, P dk, P dv,
                          P delta, P dweight, bool is_bf16, int device, P stream) {
  const auto in = attention(q, q_token, q_head, k, k_token, k_head, v, v_token, v_head, cu_q, cu_k, weight, total_q,
                            total_k, batch, num_heads, head_dim, max_q, max_k, scale);
  msvit::cuda::varlen_attention_bwd({in,
                                     {Pointer{dout}, dout_token, dout_head},
                                     Pointer{out},
                                     Pointer{lse},
                                     Pointer{dlse},
                                     Pointer{dq},
                                     Pointer{dk},
                                     Pointer{dv},
                                     Pointer{delta},
                                     Pointer{dweight}},
                                    is_bf16, device, stream);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of msvit_kernels (internal)";
  m.def("build_info", &build_info);
  m.def("device_count", &device_count, "Number of GPUs, and the runtime's reason if there is none.");
  m.def("device_properties", &device_properties);
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("varlen_attention_fwd", &varlen_attention_fwd, release);
  m.def("varlen_attention_bwd", &varlen_attention_bwd, release);
}
