// Python module msvit_kernels._cuda. Links cudart statically and nothing of the driver, so that it imports without a
// GPU.
#include <pybind11/pybind11.h>

#include "cuda/device.h"

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

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of msvit_kernels (internal)";
  m.def("build_info", &build_info);
  m.def("device_count", &device_count, "Number of GPUs, and the runtime's reason if there is none.");
  m.def("device_properties", &device_properties);
}
