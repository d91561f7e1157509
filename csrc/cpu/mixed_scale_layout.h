// Offsets and indices of packed mixed-scale tokens on the CPU: arguments and entry points. Integers only, exact.
//
// A region r of image b has size_br packed rows: 1 if it is coarse, scale_factor^2 if it is fine (docs/operators.md).
//
//   num_tokens_b    = num_prefix + sum_r size_br,   cu_seqlens = (0, cumulative sum of num_tokens)
//   region_start_br = cu_seqlens_b + num_prefix + sum_{r' < r} size_br'
#pragma once

#include <cstdint>

#include "simd/isa.h"

namespace msvit {

struct MixedScaleLayoutOffsetsArgs {
  const uint8_t* fine_mask;  // [batch, num_regions], not 0 = fine
  int32_t* num_tokens;       // [batch]
  int32_t* cu_seqlens;       // [batch + 1]
  int32_t* region_start;     // [batch, num_regions]
  int64_t batch, num_regions, scale_factor, num_prefix;
  int num_threads;
};

// All rows below total_tokens are written, whatever the offsets are. A row without a token gets image 0, candidate 0.
struct MixedScaleLayoutFwdArgs {
  const uint8_t* fine_mask;     // [batch, rows, columns], not 0 = fine
  const int32_t* cu_seqlens;    // [batch + 1]
  const int32_t* region_start;  // [batch, rows * columns]
  int32_t* batch_index;         // [total_tokens]
  int32_t* token_index;         // [total_tokens]
  int64_t batch, rows, columns, total_tokens, scale_factor, num_prefix;
  int num_threads;
};

// Null for a field that the caller does not have; a num_prefix of -1 stands for that of the first image.
struct MixedScaleLayoutCheckArgs {
  const uint8_t* fine_mask;     // [batch, rows, columns], not 0 = fine
  const int32_t* region_start;  // [batch, rows * columns]
  const int32_t* cu_seqlens;    // [batch + 1] or null
  const int32_t* batch_index;   // [total_tokens] or null
  const int32_t* token_index;   // [total_tokens], null if batch_index is
  int64_t batch, rows, columns, total_tokens, scale_factor, num_prefix;
};

// `mixed_scale_layout_matches`: whether the fields are those that the two functions before it compute from the mask.
#define MSVIT_ENTRY(level)                                             \
  namespace level {                                                    \
  void mixed_scale_layout_offsets(const MixedScaleLayoutOffsetsArgs&); \
  void mixed_scale_layout_fwd(const MixedScaleLayoutFwdArgs&);         \
  bool mixed_scale_layout_matches(const MixedScaleLayoutCheckArgs&);   \
  }
MSVIT_FOR_EACH_ISA(MSVIT_ENTRY)
#undef MSVIT_ENTRY

}  // namespace msvit
