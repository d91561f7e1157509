// The loop has no early exit, so that the compiler makes vector code of it.
#include "checks.h"

#include <algorithm>

namespace msvit {

bool valid_offsets(const int32_t* offsets, int64_t n, int64_t total, int64_t max_seqlen) {
  if (n < 1 || offsets[0] != 0 || offsets[n - 1] != total) return false;
  int64_t shortest = 0, longest = 0;
  for (int64_t i = 1; i < n; ++i) {
    const int64_t length = int64_t{offsets[i]} - offsets[i - 1];
    shortest = std::min(shortest, length);
    longest = std::max(longest, length);
  }
  return shortest >= 0 && longest <= max_seqlen;
}

}  // namespace msvit
