"""Device functions of regions: their numbers of rows, and the cells of the fine grid that they cover."""

import triton
import triton.language as tl


@triton.jit
def region_rows(fine, SCALE_FACTOR: tl.constexpr):
    """Number of packed rows of each region, in the shape of `fine`."""
    return tl.where(fine, SCALE_FACTOR * SCALE_FACTOR, 1)


@triton.jit
def place_of_cell(cell_y, cell_x, width, SCALE_FACTOR: tl.constexpr):
    """(region of each cell, index of the cell within it), elementwise; `width` is the number of regions in a row."""
    region = cell_y // SCALE_FACTOR * width + cell_x // SCALE_FACTOR
    return region, cell_y % SCALE_FACTOR * SCALE_FACTOR + cell_x % SCALE_FACTOR


@triton.jit
def cell_of_place(region, local, width, SCALE_FACTOR: tl.constexpr):
    """Index of each cell in the raster order of the fine grid, elementwise; the inverse of `place_of_cell`."""
    cell_y = region // width * SCALE_FACTOR + local // SCALE_FACTOR
    return cell_y * (width * SCALE_FACTOR) + region % width * SCALE_FACTOR + local % SCALE_FACTOR
