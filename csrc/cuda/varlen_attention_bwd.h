// The two implementations of the backward: one kernel for short sequences, two kernels for any length.
#pragma once

#include "varlen_attention.h"

namespace msvit::cuda {

// Whether the queries of a sequence fit the shared memory and the registers of the one kernel.
bool fits_one_pass(const Attention& in, int device);

// Called by varlen_attention_bwd, which has set the device and tightened the bounds.
void varlen_attention_bwd_one_pass(const AttentionBackward& call, bool is_bf16, int device, uintptr_t stream);
void varlen_attention_bwd_two_pass(const AttentionBackward& call, bool is_bf16, int device, uintptr_t stream);

}  // namespace msvit::cuda
