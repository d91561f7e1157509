// Attention backward: choice between the one-pass and the two-pass kernels, whose files give the equations.
#include "launch.cuh"
#include "sequences.cuh"
#include "varlen_attention_bwd.h"

namespace msvit::cuda {

void varlen_attention_bwd(const AttentionBackward& asked, bool is_bf16, int device, uintptr_t stream) {
  const AttentionBackward call = with_tight_bounds(asked);
  const Attention& in = call.in;
  if (in.batch == 0 || in.num_heads == 0 || (in.total_q == 0 && in.total_k == 0)) return;
  const DeviceGuard guard(device);
  if (fits_one_pass(in, device)) {
    varlen_attention_bwd_one_pass(call, is_bf16, device, stream);
  } else {
    varlen_attention_bwd_two_pass(call, is_bf16, device, stream);
  }
}

}  // namespace msvit::cuda
