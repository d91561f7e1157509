// Patch embedding of packed mixed-scale tokens on the CPU.
//
//   row_t = table[token_index_t] + [t is a patch] * (weight . patch_t + bias)
//
// Candidates are numbered: num_prefix prefix tokens, then the coarse grid, then the fine grid, both in raster order.
// weight is [dim, 3, p, p], images are [batch, 3, height, width], all contiguous. A row whose batch_index or
// token_index is out of range is treated as a prefix token, so that nothing outside the tensors is touched.
#pragma once

#include <array>
#include <cstdint>

#include "simd/isa.h"

namespace msvit {

enum class PixelType : int { float32, bfloat16, float16, uint8 };

// Where patches come from and how their pixels become numbers: (x * range - mean) / std, range = 1/255 for uint8,
// else 1.
struct PatchSource {
  const void* images;
  const int32_t* batch_index;  // [total_tokens]
  const int32_t* token_index;  // [total_tokens]
  int64_t batch, height, width, total_tokens;
  int64_t patch_size, scale_factor, num_prefix;
  int pixel_type;  // a PixelType, as the binding passes it
  std::array<double, 3> mean, std;
};

// What forward and backward have in common.
struct MixedScaleEmbedInputs : PatchSource {
  const void* weight;  // backward reads it for dimages
  int64_t dim;
  bool is_bf16;  // dtype of weight, bias, table, out and their gradients: bfloat16 or float32
  int num_threads;
};

struct MixedScaleEmbedFwdArgs : MixedScaleEmbedInputs {
  const void* bias;   // [dim] or null
  const void* table;  // [num_candidates, dim]
  void* out;          // [total_tokens, dim]
};

struct MixedScaleEmbedBwdArgs : MixedScaleEmbedInputs {
  const void* dout;             // [total_tokens, dim], dtype of weight
  const uint8_t* fine_mask;     // [batch, Hc, Wc], not 0 = fine
  const int32_t* region_start;  // [batch, Hc * Wc]
  const int32_t* cu_seqlens;    // [batch + 1]
  void* dimages;                // like images, or null: not wanted (so are the next three)
  void* dweight;
  void* dbias;
  void* dtable;
};

#define MSVIT_ENTRY(level)                                   \
  namespace level {                                          \
  void mixed_scale_embed_fwd(const MixedScaleEmbedFwdArgs&); \
  void mixed_scale_embed_bwd(const MixedScaleEmbedBwdArgs&); \
  }
MSVIT_FOR_EACH_ISA(MSVIT_ENTRY)
#undef MSVIT_ENTRY

}  // namespace msvit
