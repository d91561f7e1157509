// Offsets and indices of packed tokens; the equations are in mixed_scale_layout.h.
//
// A task is one image. The offsets take one pass over the mask, and one over region_start, which adds the start of the
// image: it is known only when all images before have been counted. The indices take one pass over the mask.
#include "mixed_scale_layout.h"

#include <algorithm>

#include "parallel.h"
#include "regions.h"

namespace msvit {
namespace MSVIT_ISA {
namespace {

constexpr int64_t kRowsPerThread = 16384;

// Writes the tokens of one image, those inside [0, total_tokens).
void write_image(const MixedScaleLayoutFwdArgs& a, int64_t image) {
  const RegionGrid grid{a.rows, a.columns, a.scale_factor};
  const int64_t num_regions = grid.num_regions(), first_fine = a.num_prefix + num_regions;
  const auto write = [&](int64_t row, int64_t candidate) {
    if (row < 0 || row >= a.total_tokens) return;
    a.batch_index[row] = static_cast<int32_t>(image);
    a.token_index[row] = static_cast<int32_t>(candidate);
  };
  for (int64_t i = 0; i < a.num_prefix; ++i) write(int64_t{a.cu_seqlens[image]} + i, i);
  for (int64_t region = 0; region < num_regions; ++region) {
    const int64_t row = a.region_start[image * num_regions + region];
    if (a.fine_mask[image * num_regions + region] == 0)
      write(row, a.num_prefix + region);
    else
      grid.for_each_cell(region, [&](int64_t cell, int64_t local) { write(row + local, first_fine + cell); });
  }
}

// Whether the rows of an image, from `row`, have its number and the numbers of its active candidates.
bool indices_match(const MixedScaleLayoutCheckArgs& a, const RegionGrid& grid, int64_t image, int64_t row,
                   int64_t num_prefix, const uint8_t* fine) {
  const int32_t* image_of = a.batch_index;
  const int32_t* candidate_of = a.token_index;
  int64_t difference = 0;
  const auto compare = [&](int64_t at, int64_t candidate) {
    difference |= (image_of[at] ^ image) | (candidate_of[at] ^ candidate);
  };
  for (int64_t i = 0; i < num_prefix; ++i) compare(row + i, i);
  row += num_prefix;
  const int64_t first_fine = num_prefix + grid.num_regions();
  for (int64_t y = 0, region = 0; y < grid.rows; ++y)
    for (int64_t x = 0; x < grid.columns; ++x, ++region) {
      if (fine[region] == 0)
        compare(row, num_prefix + region);
      else
        grid.for_each_cell(y, x, [&](int64_t cell, int64_t local) { compare(row + local, first_fine + cell); });
      row += grid.num_rows(fine[region] != 0);
    }
  return difference == 0;
}

}  // namespace

void mixed_scale_layout_offsets(const MixedScaleLayoutOffsetsArgs& a) {
  const int num_threads = threads_for(a.batch * a.num_regions, kRowsPerThread, a.num_threads);
  const RegionGrid grid{1, a.num_regions, a.scale_factor};
  // Starts are relative to their image until cu_seqlens is known.
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t image = 0; image < a.batch; ++image) {
    int32_t end = static_cast<int32_t>(a.num_prefix);
    for (int64_t r = image * a.num_regions; r < (image + 1) * a.num_regions; ++r) {
      a.region_start[r] = end;
      end += static_cast<int32_t>(grid.num_rows(a.fine_mask[r] != 0));
    }
    a.num_tokens[image] = end;
  }
  a.cu_seqlens[0] = 0;
  for (int64_t image = 0; image < a.batch; ++image) a.cu_seqlens[image + 1] = a.cu_seqlens[image] + a.num_tokens[image];
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t image = 0; image < a.batch; ++image)
    for (int64_t r = image * a.num_regions; r < (image + 1) * a.num_regions; ++r)
      a.region_start[r] += a.cu_seqlens[image];
}

void mixed_scale_layout_fwd(const MixedScaleLayoutFwdArgs& a) {
  std::fill_n(a.batch_index, a.total_tokens, 0);
  std::fill_n(a.token_index, a.total_tokens, 0);
  const int num_threads = threads_for(a.total_tokens, kRowsPerThread, a.num_threads);
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t image = 0; image < a.batch; ++image) write_image(a, image);
}

// On one thread: it takes a few nanoseconds a row, far less than the kernels that use the layout.
bool mixed_scale_layout_matches(const MixedScaleLayoutCheckArgs& a) {
  const RegionGrid grid{a.rows, a.columns, a.scale_factor};
  const int64_t num_regions = grid.num_regions();
  const int64_t num_prefix = a.num_prefix >= 0 || a.batch == 0 ? a.num_prefix : a.region_start[0];
  if (num_prefix < 0 && a.batch > 0) return false;
  int64_t row = 0;
  for (int64_t image = 0; image < a.batch; ++image) {
    const int64_t first_row = row;
    const int32_t* start = a.region_start + image * num_regions;
    const uint8_t* fine = a.fine_mask + image * num_regions;
    if (a.cu_seqlens != nullptr && a.cu_seqlens[image] != row) return false;
    row += num_prefix;
    bool match = true;
    for (int64_t region = 0; region < num_regions; ++region) {
      match &= start[region] == row;
      row += grid.num_rows(fine[region] != 0);
    }
    // Before any of the rows is read, they are known to exist.
    if (!match || row > a.total_tokens) return false;
    if (a.batch_index != nullptr && !indices_match(a, grid, image, first_row, num_prefix, fine)) return false;
  }
  return row == a.total_tokens && (a.cu_seqlens == nullptr || a.cu_seqlens[a.batch] == row);
}

}  // namespace MSVIT_ISA
}  // namespace msvit
