"""Device code that the embedding's forward and backward share: where a candidate's pixels lie, and how to read them."""

import triton
import triton.language as tl


@triton.jit
def patch_origin(index, num_coarse, grid_width, PATCH_SIZE: tl.constexpr, SCALE_FACTOR: tl.constexpr):
    """First pixel (y, x) of a patch, and whether it is coarse; `index` counts candidates without the prefix."""
    coarse = index < num_coarse
    fine_index = index - num_coarse
    coarse_width = grid_width // SCALE_FACTOR
    y = tl.where(coarse, index // coarse_width * SCALE_FACTOR, fine_index // grid_width) * PATCH_SIZE
    x = tl.where(coarse, index % coarse_width * SCALE_FACTOR, fine_index % grid_width) * PATCH_SIZE
    return y, x, coarse


@triton.jit
def load_patches(
    image_ptrs, y, x, coarse, valid, offs_p, channel, height, width, scale, shift,
    PATCH_SIZE: tl.constexpr, SCALE_FACTOR: tl.constexpr,
):  # fmt: skip
    """fp32 [rows, pixels]: pixels `offs_p` of one channel of each row's patch, as pixel * scale + shift.

    `image_ptrs` and what `patch_origin` gives are [rows]. 0, and nothing is read, in rows that are not valid and for
    positions from PATCH_SIZE ** 2 on.
    """
    mask = valid[:, None] & (offs_p < PATCH_SIZE * PATCH_SIZE)[None, :]
    patch_y, patch_x = (offs_p // PATCH_SIZE)[None, :], (offs_p % PATCH_SIZE)[None, :]
    ptrs = (image_ptrs + (channel * height * width + y * width + x))[:, None]
    # A fine patch is read in runs of PATCH_SIZE pixels, a coarse one pixel by pixel.
    pixels = tl.load(ptrs + patch_y * width + patch_x, mask=mask & (coarse == 0)[:, None], other=0).to(tl.float32)
    coarse_ptrs = ptrs + patch_y * SCALE_FACTOR * width + patch_x * SCALE_FACTOR
    total = tl.zeros_like(pixels)
    for i in tl.range(SCALE_FACTOR * SCALE_FACTOR, loop_unroll_factor=4):
        coarse_pixel_ptrs = coarse_ptrs + (i // SCALE_FACTOR * width + i % SCALE_FACTOR)
        total += tl.load(coarse_pixel_ptrs, mask=mask & coarse[:, None], other=0).to(tl.float32)
    pixels += total * (1.0 / (SCALE_FACTOR * SCALE_FACTOR))
    return tl.where(mask, pixels * scale + shift, 0.0)
