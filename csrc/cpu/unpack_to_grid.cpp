// Both directions of unpack_to_grid; the equations are in unpack_to_grid.h.
//
// A task is one image and kColumns of its channels: one pass over its tokens and its part of the grid, which is
// transposed between [cell][channel] and [channel][cell] in register blocks. Forward copies bits. Backward adds the
// cells of a coarse token in fp32 in raster order, so its bits do not depend on the number of threads.
#include "unpack_to_grid.h"

#include <algorithm>

#include "parallel.h"
#include "regions.h"
#include "simd/transpose.h"

namespace msvit {
namespace MSVIT_ISA {
namespace {

constexpr int64_t kColumns = 64;
static_assert(kColumns % kBlock == 0, "the channels of a task are whole blocks");

template <class T>
class Unpack {
 public:
  explicit Unpack(const UnpackToGridArgs& args)
      : a_(args),
        tokens_(static_cast<T*>(args.tokens)),
        grid_(static_cast<T*>(args.grid)),
        regions_{args.rows, args.columns, args.scale_factor},
        num_regions_(regions_.num_regions()),
        cells_(regions_.num_cells()),
        num_threads_(threads_for(args.batch * args.dim * cells_, 1 << 15, args.num_threads)) {}

  void forward() const {
    const Scratch<const T*> scratch(num_threads_, round_up(cells_, kBlock));
    run_tasks([&](int64_t image, int64_t column, int64_t columns) {
      const T** row = scratch.of_thread();
      for (int64_t region = 0; region < num_regions_; ++region)
        regions_.for_each_cell(region, [&](int64_t cell, int64_t local) {
          const int64_t index = row_of(image, region, local);
          row[cell] = index < 0 ? kZeros : tokens_ + index * a_.token_stride + column;
        });
      copy_to_grid(row, grid_ + (image * a_.dim + column) * cells_, columns);
    });
  }

  void backward() const {
    const Scratch<float> scratch(num_threads_, (cells_ + 1) * kColumns);
    run_tasks([&](int64_t image, int64_t column, int64_t columns) {
      float* values = scratch.of_thread();
      copy_from_grid(grid_ + (image * a_.dim + column) * cells_, columns, values);
      for (int64_t region = 0; region < num_regions_; ++region) {
        clear_rows(end_before(image, region), a_.region_start[image * num_regions_ + region], column, columns);
        if (is_fine(image, region))
          regions_.for_each_cell(region, [&](int64_t cell, int64_t local) {
            write_row(row_of(image, region, local), column, columns, values + cell * kColumns);
          });
        else
          write_row(row_of(image, region, 0), column, columns,
                    sum_of_cells(region, values, values + cells_ * kColumns));
      }
      if (image == a_.batch - 1) clear_rows(end_before(a_.batch, 0), a_.total_tokens, column, columns);
    });
  }

 private:
  static constexpr T kZeros[kColumns] = {};

  template <class Function>
  void run_tasks(const Function& f) const {
    const int64_t parts = ceil_div(a_.dim, kColumns);
#pragma omp parallel for num_threads(num_threads_) schedule(static)
    for (int64_t item = 0; item < a_.batch * parts; ++item) {
      const int64_t column = item % parts * kColumns;
      f(item / parts, column, std::min(kColumns, a_.dim - column));
    }
  }

  bool is_fine(int64_t image, int64_t region) const { return a_.fine_mask[image * num_regions_ + region] != 0; }

  // The packed row of a cell, or -1 if the layout points outside the tokens.
  int64_t row_of(int64_t image, int64_t region, int64_t local) const {
    const int64_t row = int64_t{a_.region_start[image * num_regions_ + region]} + (is_fine(image, region) ? local : 0);
    return row >= 0 && row < a_.total_tokens ? row : -1;
  }

  // The row after the region before this one. Rows from there to this region's start are prefix tokens.
  int64_t end_before(int64_t image, int64_t region) const {
    const int64_t previous = image * num_regions_ + region - 1;
    if (previous < 0) return 0;
    return int64_t{a_.region_start[previous]} + regions_.num_rows(a_.fine_mask[previous] != 0);
  }

  void copy_to_grid(const T* const* row, T* grid, int64_t columns) const {
    const int64_t whole = columns / kBlock * kBlock;
    int64_t cell = 0;
    for (; cell + kBlock <= cells_; cell += kBlock) {
      for (int64_t d = 0; d < whole; d += kBlock)
        transpose_block([&](int i) { return load_block(row[cell + i] + d); }, grid + d * cells_ + cell, cells_);
      for (int64_t d = whole; d < columns; ++d)
        for (int64_t i = 0; i < kBlock; ++i) grid[d * cells_ + cell + i] = row[cell + i][d];
    }
    for (; cell < cells_; ++cell)
      for (int64_t d = 0; d < columns; ++d) grid[d * cells_ + cell] = row[cell][d];
  }

  // values[cell][kColumns] = grid[channel][cell]
  void copy_from_grid(const T* grid, int64_t columns, float* values) const {
    const int64_t whole = columns / kBlock * kBlock;
    int64_t cell = 0;
    for (; cell + kBlock <= cells_; cell += kBlock) {
      for (int64_t d = 0; d < whole; d += kBlock)
        transpose_block([&](int i) { return load_block(grid + (d + i) * cells_ + cell); }, values + cell * kColumns + d,
                        kColumns);
      for (int64_t d = whole; d < columns; ++d)
        for (int64_t i = 0; i < kBlock; ++i) values[(cell + i) * kColumns + d] = to_float(grid[d * cells_ + cell + i]);
    }
    for (; cell < cells_; ++cell)
      for (int64_t d = 0; d < columns; ++d) values[cell * kColumns + d] = to_float(grid[d * cells_ + cell]);
  }

  const float* sum_of_cells(int64_t region, const float* values, float* sum) const {
    std::memset(sum, 0, kColumns * sizeof(float));
    regions_.for_each_cell(region, [&](int64_t cell, int64_t) {
      for (int64_t d = 0; d < kColumns; ++d) sum[d] += values[cell * kColumns + d];
    });
    return sum;
  }

  void write_row(int64_t row, int64_t column, int64_t columns, const float* values) const {
    if (row < 0) return;
    T* dst = tokens_ + row * a_.token_stride + column;
    for (int64_t d = 0; d < columns; ++d) convert(dst + d, values[d]);
  }

  void clear_rows(int64_t begin, int64_t end, int64_t column, int64_t columns) const {
    for (int64_t row = std::max<int64_t>(begin, 0); row < std::min(end, a_.total_tokens); ++row)
      std::memset(tokens_ + row * a_.token_stride + column, 0, columns * sizeof(T));
  }

  const UnpackToGridArgs& a_;
  T* const tokens_;
  T* const grid_;
  const RegionGrid regions_;
  const int64_t num_regions_, cells_;
  const int num_threads_;
};

}  // namespace

void unpack_to_grid_fwd(const UnpackToGridArgs& args) {
  return args.is_bf16 ? Unpack<Bf16>(args).forward() : Unpack<float>(args).forward();
}

void unpack_to_grid_bwd(const UnpackToGridArgs& args) {
  return args.is_bf16 ? Unpack<Bf16>(args).backward() : Unpack<float>(args).backward();
}

}  // namespace MSVIT_ISA
}  // namespace msvit
