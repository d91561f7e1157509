// The loops over many values have no early exit, so that the compiler makes vector code of it.
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

bool valid_packing(const int32_t* offsets, int64_t n, int64_t total, int64_t max_seqlen, int64_t num_prefix,
                   const int32_t* num_tokens, const int32_t* batch_index) {
  if (!valid_offsets(offsets, n, total, max_seqlen)) return false;
  for (int64_t i = 0; i + 1 < n; ++i) {
    const int64_t length = int64_t{offsets[i + 1]} - offsets[i];
    if (length < num_prefix || (num_tokens != nullptr && num_tokens[i] != length)) return false;
    if (batch_index == nullptr) continue;
    bool match = true;
    for (int64_t row = offsets[i]; row < offsets[i + 1]; ++row) match &= batch_index[row] == i;
    if (!match) return false;
  }
  return true;
}

}  // namespace msvit
