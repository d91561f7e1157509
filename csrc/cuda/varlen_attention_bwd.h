// The two ways backward: one kernel for short sequences, two for any length.
#pragma once

#include "varlen_attention.h"

namespace msvit::cuda {

// Whether the one kernel takes the call: queries of one sequence fit into its shared memory and its registers.
bool fits_one_pass(const Attention& in, int device);

// Device and sizes are checked already; is_bf16 as in varlen_attention_bwd.
void varlen_attention_bwd_one_pass(const AttentionBackward& call, bool is_bf16, int device, uintptr_t stream);
void varlen_attention_bwd_two_pass(const AttentionBackward& call, bool is_bf16, int device, uintptr_t stream);

}  // namespace msvit::cuda
