"""Device functions of the embedding, forward and backward: the position of a patch, and its averaged pixels."""

import triton
import triton.language as tl


@triton.jit
def patch_origin(index, num_coarse, grid_width, PATCH_SIZE: tl.constexpr, SCALE_FACTOR: tl.constexpr):
    """First pixel (y, x) of each patch, and whether it is coarse; `index` is its candidate, less the prefix tokens."""
    coarse = index < num_coarse
    fine_index = index - num_coarse
    coarse_width = grid_width // SCALE_FACTOR
    y = tl.where(coarse, index // coarse_width * SCALE_FACTOR, fine_index // grid_width) * PATCH_SIZE
    x = tl.where(coarse, index % coarse_width * SCALE_FACTOR, fine_index % grid_width) * PATCH_SIZE
    return y, x, coarse


@triton.jit
def load_patches(
    image_ptrs, y, x, coarse, valid, start_p, channel, height, width, scale, shift,
    PATCH_SIZE: tl.constexpr, SCALE_FACTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """BLOCK_P pixels of one channel of each row's patch, as pixel * scale + shift: fp32 [BLOCK_M, BLOCK_P].

    The pixels are those from `start_p` on, in raster order; a pixel of a coarse patch is the mean of SCALE_FACTOR ** 2
    pixels of the image. `image_ptrs`, `y`, `x`, `coarse` and `valid` are [BLOCK_M]. Nothing is read, and the result is
    0, in rows that are not valid and beyond PATCH_SIZE ** 2 pixels.
    """
    ptrs = (image_ptrs + (channel * height * width + y * width + x))[:, None]
    offs_p = start_p + tl.arange(0, BLOCK_P)[None, :]
    mask = valid[:, None] & (offs_p < PATCH_SIZE * PATCH_SIZE)
    fine_ptrs = ptrs + (offs_p // PATCH_SIZE) * width + offs_p % PATCH_SIZE
    pixels = tl.load(fine_ptrs, mask=mask & (coarse == 0)[:, None], other=0).to(tl.float32)

    # A wider tile reads the SCALE_FACTOR neighbouring image pixels of each coarse pixel at once.
    SIDE: tl.constexpr = triton.next_power_of_2(SCALE_FACTOR)
    offs_s = start_p * SIDE + tl.arange(0, BLOCK_P * SIDE)[None, :]
    if SIDE == SCALE_FACTOR:
        patch_y, pixel_x = offs_s // (PATCH_SIZE * SIDE), offs_s % (PATCH_SIZE * SIDE)
        inside = offs_s < PATCH_SIZE * PATCH_SIZE * SIDE
    else:
        position = offs_s // SIDE
        patch_y, pixel_x = position // PATCH_SIZE, position % PATCH_SIZE * SCALE_FACTOR + offs_s % SIDE
        inside = (position < PATCH_SIZE * PATCH_SIZE) & (offs_s % SIDE < SCALE_FACTOR)
    coarse_mask = (valid & coarse)[:, None] & inside
    total = tl.zeros([BLOCK_M, BLOCK_P * SIDE], tl.float32)
    for dy in tl.range(SCALE_FACTOR, loop_unroll_factor=2):
        coarse_ptrs = ptrs + (patch_y * SCALE_FACTOR + dy) * width + pixel_x
        total += tl.load(coarse_ptrs, mask=coarse_mask, other=0).to(tl.float32)
    total = tl.sum(tl.reshape(total, [BLOCK_M, BLOCK_P, SIDE]), 2)
    pixels += total * (1.0 / (SCALE_FACTOR * SCALE_FACTOR))
    return tl.where(mask, pixels * scale + shift, 0.0)
