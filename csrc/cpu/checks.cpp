#include "checks.h"

#include <algorithm>

namespace msvit {

OffsetsError check_offsets(const int32_t* offsets, int64_t n, int64_t total, int64_t max_seqlen) {
  if (n < 1 || offsets[0] != 0) return OffsetsError::first_not_zero;
  int64_t shortest = 0, longest = 0;
  for (int64_t i = 1; i < n; ++i) {
    const int64_t length = int64_t{offsets[i]} - offsets[i - 1];
    shortest = std::min(shortest, length);
    longest = std::max(longest, length);
  }
  if (shortest < 0) return OffsetsError::decreasing;
  if (offsets[n - 1] != total) return OffsetsError::last_not_total;
  if (longest > max_seqlen) return OffsetsError::sequence_too_long;
  return OffsetsError::none;
}

bool check_range(const int32_t* values, int64_t n, int64_t upper) {
  int32_t smallest = 0, largest = -1;
  for (int64_t i = 0; i < n; ++i) {
    smallest = std::min(smallest, values[i]);
    largest = std::max(largest, values[i]);
  }
  return smallest >= 0 && largest < upper;
}

}  // namespace msvit
