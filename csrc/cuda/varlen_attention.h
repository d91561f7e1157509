// Variable-length attention on the GPU, 16-bit elements: what the kernels take, and the functions that launch them.
#pragma once

#include <cstdint>

namespace msvit::cuda {

// Rows of one tensor [tokens, heads, head_dim]; the last axis is contiguous. Strides in elements, multiples of 8.
struct Rows {
  const uint16_t* data;
  int64_t token_stride;
  int64_t head_stride;
};

// What forward and backward kernels have in common.
struct Attention {
  Rows q, k, v;
  const int32_t* cu_seqlens_q;  // [batch + 1]
  const int32_t* cu_seqlens_k;
  const float* key_weight;  // [total_k], or null for all ones
  int64_t total_q;
  int64_t total_k;
  int32_t batch;
  int32_t num_heads;
  int32_t head_dim;
  int32_t max_seqlen_q;
  int32_t max_seqlen_k;
  float softmax_scale;
};

struct AttentionForward {
  Attention in;
  uint16_t* out;  // [total_q, heads, head_dim]
  float* lse;     // [heads, total_q]
};

struct AttentionBackward {
  Attention in;
  Rows dout;
  const uint16_t* out;  // [total_q, heads, head_dim]
  const float* lse;     // [heads, total_q]
  const float* dlse;    // [heads, total_q], or null for zero
  uint16_t* dq;         // gradients: as their tensors, contiguous
  uint16_t* dk;
  uint16_t* dv;
  float* delta;    // [heads, total_q], working memory
  float* dweight;  // [heads, total_k], one row of partial sums per head, or null
};

// Both return before the kernels end. Throw std::runtime_error where a launch fails.
void varlen_attention_fwd(const AttentionForward& call, bool is_bf16, int device, uintptr_t stream);
void varlen_attention_bwd(const AttentionBackward& call, bool is_bf16, int device, uintptr_t stream);

}  // namespace msvit::cuda
