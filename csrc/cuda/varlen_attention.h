// Attention on the GPU in 16 bits: arguments of the kernels, and the functions that launch them.
#pragma once

#include <cstdint>

namespace msvit::cuda {

// A tensor [tokens, heads, head_dim] with a contiguous last axis. Strides are in elements and multiples of 8, and
// `data` is aligned to 16 bytes.
struct Rows {
  const uint16_t* data;
  int64_t token_stride;
  int64_t head_stride;
};

// Arguments of forward and backward. A bound max_seqlen_* may be greater than the longest sequence.
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
  uint16_t* dq;         // gradients, in the shapes of q, k and v, contiguous
  uint16_t* dk;
  uint16_t* dv;
  float* delta;    // [heads, total_q], scratch
  float* dweight;  // [heads, total_k], sums over the queries of one head; the caller adds heads. Null: not wanted
};

// Both enqueue kernels on the stream and return. They throw std::runtime_error if a launch fails.
void varlen_attention_fwd(const AttentionForward& call, bool is_bf16, int device, uintptr_t stream);
void varlen_attention_bwd(const AttentionBackward& call, bool is_bf16, int device, uintptr_t stream);

}  // namespace msvit::cuda
