// The arithmetic of regions: the cells of the fine grid that a region covers, and how many packed rows it has. All CPU
// kernels take it from here.
#pragma once

#include <cstdint>

#include "simd/isa.h"

namespace msvit {
namespace MSVIT_ISA {

// A cell of the fine grid as its region sees it. The cells of a region are numbered in raster order.
struct CellPlace {
  int64_t region, local;
};

struct RegionGrid {
  int64_t rows, columns, scale_factor;

  int64_t num_regions() const { return rows * columns; }
  int64_t cells_per_region() const { return scale_factor * scale_factor; }
  int64_t num_cells() const { return num_regions() * cells_per_region(); }
  int64_t cell_columns() const { return columns * scale_factor; }

  // Packed rows of a region.
  int64_t num_rows(bool fine) const { return fine ? cells_per_region() : 1; }

  CellPlace place_of(int64_t cell) const {
    const int64_t s = scale_factor, y = cell / cell_columns(), x = cell % cell_columns();
    return {y / s * columns + x / s, y % s * s + x % s};
  }

  // Calls f(cell, its number within the region) for every cell of a region, in raster order.
  template <class Function>
  void for_each_cell(int64_t region, const Function& f) const {
    for_each_cell(region / columns, region % columns, f);
  }

  // The same for the region in this row and column, without a division.
  template <class Function>
  void for_each_cell(int64_t row, int64_t column, const Function& f) const {
    const int64_t s = scale_factor, first = (row * cell_columns() + column) * s;
    for (int64_t i = 0; i < s; ++i)
      for (int64_t j = 0; j < s; ++j) f(first + i * cell_columns() + j, i * s + j);
  }
};

}  // namespace MSVIT_ISA
}  // namespace msvit
