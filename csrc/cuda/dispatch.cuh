// Choice of a kernel's template arguments, element type and width, by the dtype and head_dim of a call.
#pragma once

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/device_code.cuh"

namespace msvit::cuda {

constexpr int kMaxHeadDim = 128;

// Calls body(T{}, std::integral_constant<int, D>{}) with the smallest D of at least head_dim.
template <class Body>
void dispatch(bool is_bf16, int head_dim, const Body& body) {
  const auto with_width = [&](auto element) {
    if (head_dim <= 32) return body(element, std::integral_constant<int, 32>{});
    if (head_dim <= 64) return body(element, std::integral_constant<int, 64>{});
    if (head_dim <= 96) return body(element, std::integral_constant<int, 96>{});
    if (head_dim <= kMaxHeadDim) return body(element, std::integral_constant<int, kMaxHeadDim>{});
    throw std::runtime_error("head_dim above " + std::to_string(kMaxHeadDim));
  };
#ifdef MSVIT_NO_FP16
  if (!is_bf16) throw std::runtime_error("this build has no fp16 kernels");
  with_width(bf16{});
#else
  is_bf16 ? with_width(bf16{}) : with_width(fp16{});
#endif
}

}  // namespace msvit::cuda
