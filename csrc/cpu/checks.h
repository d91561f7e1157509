// A check of offsets that Python runs before a CPU kernel: one pass over them, no temporary.
#pragma once

#include <cstdint>

namespace msvit {

// Whether n offsets (one more than there are sequences) start at 0, never decrease, end at `total`, and give no
// sequence more than `max_seqlen` rows. If not, Python looks for the broken rule itself: that is rare and may be slow.
bool valid_offsets(const int32_t* offsets, int64_t n, int64_t total, int64_t max_seqlen);

}  // namespace msvit
