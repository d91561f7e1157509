// Patch embedding of packed mixed-scale tokens on the CPU: arguments and entry points.
//
//   row_t = table[token_index_t] + [t is a patch] * (weight . patch_t + bias)     docs/operators.md
//
// Candidates are numbered: num_prefix prefix tokens, then the coarse grid, then the fine grid, both in raster order. A
// row whose batch_index or token_index is out of range counts as a prefix token, so kernels touch nothing outside the
// tensors. All tensors are contiguous: images [batch, 3, height, width], weight [dim, 3, p, p].
#pragma once

#include <array>
#include <cstdint>

#include "simd/isa.h"

namespace msvit {

enum class PixelType : int { float32, bfloat16, float16, uint8 };

// The images, the patches in them, and the normalisation of pixels (patches.h).
struct PatchSource {
  const void* images;
  const int32_t* batch_index;  // [total_tokens]
  const int32_t* token_index;  // [total_tokens]
  int64_t batch, height, width, total_tokens;
  int64_t patch_size, scale_factor, num_prefix;
  int pixel_type;  // a PixelType
  std::array<double, 3> mean, std;
};

// Arguments of both forward and backward.
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
  void* dimages;                // like images; null if not wanted, like the next three
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
