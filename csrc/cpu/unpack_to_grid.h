// Packed tokens back on the fine grid, on the CPU: arguments and entry points.
//
//   forward:   grid[b, :, y, x] = tokens[row of the token of image b that covers cell (y, x)]
//   backward:  tokens[row] = sum over the cells (y, x) that the row's token covers of grid[b, :, y, x]
//
// A coarse token covers scale_factor^2 cells, a fine one a single cell, a prefix token none (docs/operators.md). If the
// region_start of a region points outside the tokens, forward reads zeros there and backward writes nothing.
#pragma once

#include <cstdint>

#include "simd/isa.h"

namespace msvit {

struct UnpackToGridArgs {
  const uint8_t* fine_mask;     // [batch, rows, columns], not 0 = fine
  const int32_t* region_start;  // [batch, rows * columns]
  void* tokens;                 // [total_tokens, dim]: read by fwd, written by bwd (there contiguous)
  void* grid;                   // [batch, dim, rows * s, columns * s], contiguous: written by fwd, read by bwd
  int64_t batch, rows, columns, scale_factor, total_tokens, dim, token_stride;
  bool is_bf16;
  int num_threads;
};

#define MSVIT_ENTRY(level)                          \
  namespace level {                                 \
  void unpack_to_grid_fwd(const UnpackToGridArgs&); \
  void unpack_to_grid_bwd(const UnpackToGridArgs&); \
  }
MSVIT_FOR_EACH_ISA(MSVIT_ENTRY)
#undef MSVIT_ENTRY

}  // namespace msvit
