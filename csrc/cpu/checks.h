// Checks of offsets and indices that Python runs before a CPU kernel: one pass, no temporary.
#pragma once

#include <cstdint>

namespace msvit {

enum class OffsetsError : int {
  none = 0,
  first_not_zero = 1,
  decreasing = 2,
  last_not_total = 3,
  sequence_too_long = 4,
};

// offsets: n values (n = number of sequences + 1). Reports the first rule broken, in the order of the enumeration.
OffsetsError check_offsets(const int32_t* offsets, int64_t n, int64_t total, int64_t max_seqlen);

// True if 0 <= values[i] < upper for all i.
bool check_range(const int32_t* values, int64_t n, int64_t upper);

}  // namespace msvit
