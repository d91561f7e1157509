// Checks of offsets that Python runs before a CPU kernel: one pass, no temporary.
#pragma once

#include <cstdint>

namespace msvit {

// Whether n offsets (one more than there are sequences) start at 0, never decrease, end at `total` and bound no
// sequence longer than `max_seqlen`. Python finds out which rule is broken: that is rare, and may take long.
bool valid_offsets(const int32_t* offsets, int64_t n, int64_t total, int64_t max_seqlen);

}  // namespace msvit
