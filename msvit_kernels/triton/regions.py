"""Device code that knows regions: how many rows one has, and which cell of the fine grid lies where in which region."""

import triton
import triton.language as tl


@triton.jit
def region_rows(fine, SCALE_FACTOR: tl.constexpr):
    """Packed rows of a region."""
    return tl.where(fine, SCALE_FACTOR * SCALE_FACTOR, 1)


@triton.jit
def place_of_cell(cell_y, cell_x, width, SCALE_FACTOR: tl.constexpr):
    """Region of a cell of the fine grid, in a grid of `width` regions a row, and the cell's number within it."""
    region = cell_y // SCALE_FACTOR * width + cell_x // SCALE_FACTOR
    return region, cell_y % SCALE_FACTOR * SCALE_FACTOR + cell_x % SCALE_FACTOR


@triton.jit
def cell_of_place(region, local, width, SCALE_FACTOR: tl.constexpr):
    """Number of a cell in the fine grid, whose rows have `width` regions: the inverse of `place_of_cell`."""
    cell_y = region // width * SCALE_FACTOR + local // SCALE_FACTOR
    return cell_y * (width * SCALE_FACTOR) + region % width * SCALE_FACTOR + local % SCALE_FACTOR
