// Variable-length attention on the CPU: arguments and entry points.
//
//   out_i = sum_j w_j exp(s_ij) v_j / sum_p w_p exp(s_ip),   s_ij = softmax_scale * q_i . k_j   (docs/operators.md)
//
// The queries of sequence b are rows cu_seqlens_q[b] .. cu_seqlens_q[b + 1] of q; its keys are the rows of k and v
// between the same entries of cu_seqlens_k. Strides count elements, and the last axis of every tensor has stride 1.
// Offsets are clamped to the numbers of rows, so that kernels touch nothing outside the tensors if offsets are wrong.
#pragma once

#include <cstdint>

#include "simd/isa.h"

namespace msvit {

// Arguments of both forward and backward.
struct VarlenAttentionInputs {
  const void* q;                // [total_q, num_heads, head_dim]
  const void* k;                // [total_k, num_heads, head_dim]
  const void* v;                // [total_k, num_heads, head_dim]
  const int32_t* cu_seqlens_q;  // [batch + 1]
  const int32_t* cu_seqlens_k;  // [batch + 1]
  const float* key_weight;      // [total_k] or null: all are 1
  int64_t batch, total_q, total_k, num_heads, head_dim;
  int64_t q_stride_token, q_stride_head;
  int64_t k_stride_token, k_stride_head;
  int64_t v_stride_token, v_stride_head;
  float softmax_scale;
  bool is_bf16;  // dtype of q, k, v, out and their gradients: bfloat16 or float32
  int num_threads;
};

struct VarlenAttentionFwdArgs : VarlenAttentionInputs {
  void* out;   // [total_q, num_heads, head_dim], contiguous
  float* lse;  // [num_heads, total_q], contiguous
};

struct VarlenAttentionBwdArgs : VarlenAttentionInputs {
  const void* dout;  // [total_q, num_heads, head_dim]
  int64_t dout_stride_token, dout_stride_head;
  const float* dlse;  // [num_heads, total_q] contiguous, or null: all are 0
  const void* out;    // [total_q, num_heads, head_dim], contiguous
  const float* lse;   // [num_heads, total_q], contiguous
  void* dq;           // [total_q, num_heads, head_dim], contiguous
  void* dk;           // [total_k, num_heads, head_dim], contiguous
  void* dv;           // [total_k, num_heads, head_dim], contiguous
  float* dweight;     // [total_k], null if not wanted
};

#define MSVIT_ENTRY(level)                                    \
  namespace level {                                           \
  void varlen_attention_fwd(const VarlenAttentionFwdArgs& a); \
  void varlen_attention_bwd(const VarlenAttentionBwdArgs& a); \
  }
MSVIT_FOR_EACH_ISA(MSVIT_ENTRY)
#undef MSVIT_ENTRY

}  // namespace msvit
