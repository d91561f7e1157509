"""Times `unpack_to_grid` against indexing in torch, forward and backward; the roofline is the copy bandwidth.

    python bench/bench_unpack_to_grid.py

Random regions are fine, so that an image has half of its fine tokens on average. The indices of the alternatives in
torch are computed beforehand:

    torch index         takes tokens[rows of all cells], then transposes into a contiguous grid
    torch gather        transposes the tokens, then selects columns

Bytes: tokens are read once and the grid is written once; the reverse in the backward pass, which is timed alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.command_line import DTYPES
from bench.operators.cases import Case, CaseMaker, Setting, backends_to_time, check_baseline
from bench.operators.command import main
from bench.passes import backward_alone
from msvit_kernels import mixed_scale_layout, testing, unpack_to_grid

SCALE, PREFIX = 2, 1


class Inputs:
    """Packed tokens [total_tokens, dim], their layout, and the row of every cell of the grid."""

    def __init__(self, batch: int, coarse: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        fine = torch.zeros(batch * coarse**2, dtype=torch.bool)
        fine[torch.randperm(len(fine), generator=generator)[: len(fine) // 3]] = True
        mask = fine.view(batch, coarse, coarse).to(device)
        self.layout = mixed_scale_layout(mask, scale_factor=SCALE, num_prefix=PREFIX)
        self.tokens = torch.randn(self.layout.total_tokens, dim, generator=generator).to(device, dtype)
        self.tokens.requires_grad_()
        self.dgrid = torch.randn(batch, dim, *self.layout.grid_size, generator=generator).to(device, dtype)
        self.row = self._rows(mask)

    def grid(self, backend: str) -> Tensor:
        """The grid [batch, dim, Hf, Wf] of a backend."""
        return unpack_to_grid(self.tokens, self.layout, backend=backend)

    def index(self) -> Tensor:
        """The same grid, by selecting rows and then transposing."""
        return self.tokens[self.row].permute(0, 3, 1, 2).contiguous()

    def gather(self) -> Tensor:
        """The same grid, by transposing first."""
        batch, height, width = self.row.shape
        grid = self.tokens.t().contiguous().index_select(1, self.row.flatten())  # [dim, batch * Hf * Wf]
        return grid.view(-1, batch, height, width).transpose(0, 1).contiguous()

    def _rows(self, mask: Tensor) -> Tensor:
        """int64 [batch, Hf, Wf]: packed row of every cell."""
        start = self.layout.region_start.long().view(mask.shape)
        start, fine = (x.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2) for x in (start, mask))
        y, x = (torch.arange(n, device=mask.device) % SCALE for n in self.layout.grid_size)
        return start + fine * (y[:, None] * SCALE + x)


def make_case(batch: int, coarse: int, dim: int, direction: str, dtype_name: str, device: torch.device) -> Case:
    """All methods in one direction."""
    dtype = DTYPES[dtype_name]
    x = Inputs(batch, coarse, dim, dtype, device)
    backends = backends_to_time("unpack_to_grid", device, dtype)
    calls: dict[str, Callable[[], Tensor]] = {backend: partial(x.grid, backend) for backend in backends}
    calls |= {"torch index": x.index, "torch gather": x.gather}
    backward = direction == "bwd"
    methods: dict[str, Callable[[], Any]] = {
        name: backward_alone(call, [x.tokens], x.dgrid) if backward else call for name, call in calls.items()
    }

    def check() -> None:
        eager, oracle = (result(x, "reference", backward, kind) for kind in (dtype, torch.float64))
        for backend in backends:
            testing.assert_accurate(f"{backend} {direction}", result(x, backend, backward, dtype), eager, oracle)
        grid = result(x, "reference", False, torch.float64)
        for name in ("torch index", "torch gather"):
            check_baseline(name, calls[name](), grid)

    side = coarse * SCALE
    fields = {"shape": f"{batch} x {dim} x {side} x {side}", "direction": direction, "dtype": dtype_name}
    return Case(fields, methods, check, bytes=(x.tokens.numel() + x.dgrid.numel()) * x.tokens.element_size())


def result(x: Inputs, backend: str, backward: bool, dtype: torch.dtype) -> Tensor:
    """The grid, or with `backward` the gradient of the tokens, of a backend in a dtype."""
    tokens = x.tokens.detach().to(dtype).requires_grad_()
    out = unpack_to_grid(tokens, x.layout, backend=backend)
    return torch.autograd.grad(out, tokens, x.dgrid.to(dtype))[0] if backward else out.detach()


def cases(setting: Setting) -> list[CaseMaker]:
    """Grids of 224, 384 and 512 pixels in both directions and every dtype."""
    shapes = [(16, 7, 384), (16, 12, 384), (4, 16, 384)]
    if setting.device.type == "cuda":
        shapes = [(256, 7, 384), (64, 16, 384)]
    if setting.quick:
        shapes = [(2, 3, 32)]
    return [
        partial(make_case, *shape, direction, dtype_name, setting.device)
        for dtype_name in setting.dtypes
        for shape in shapes
        for direction in ("fwd", "bwd")
    ]


if __name__ == "__main__":
    main("unpack_to_grid", cases, __doc__)
