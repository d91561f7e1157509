// Checks of offsets that Python runs before a CPU kernel: one pass over them, no temporary.
#pragma once

#include <cstdint>

namespace msvit {

// Whether n offsets (one more than there are sequences) start at 0, never decrease, end at `total`, and give no
// sequence more than `max_seqlen` rows. If not, Python looks for the broken rule itself: that is rare and may be slow.
bool valid_offsets(const int32_t* offsets, int64_t n, int64_t total, int64_t max_seqlen);

// Whether the offsets are valid, every sequence has at least `num_prefix` rows, num_tokens [n - 1] are the lengths of
// the sequences, and batch_index [total] is the sequence of each row. Either array may be null.
bool valid_packing(const int32_t* offsets, int64_t n, int64_t total, int64_t max_seqlen, int64_t num_prefix,
                   const int32_t* num_tokens, const int32_t* batch_index);

}  // namespace msvit
