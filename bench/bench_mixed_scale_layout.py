"""Times `mixed_scale_layout` against two ways to do the same with torch; the roofline is the copy bandwidth.

    python bench/bench_mixed_scale_layout.py

A random third of the regions is fine. The number of packed rows is known beforehand, as with a budget, so that nothing
waits for the device. All methods compute the same offsets and indices:

    reference                        the eager specification of this project: a scatter over all candidates
    torch repeat_interleave          repeats every region once per token
    torch nonzero                    finds the active tokens in a table with room for all candidates
    torch repeat_interleave compiled the same through torch.compile (GPU)

Bytes: the mask is read once; the first rows of the regions and both indices are written once. There is no gradient.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.operators.cases import Case, CaseMaker, Setting, backends_to_time
from bench.operators.command import main
from msvit_kernels import MixedScaleLayout, mixed_scale_layout

SCALE, PREFIX = 2, 1
TENSORS = ("num_tokens", "cu_seqlens", "region_start", "batch_index", "token_index")
Layout = tuple[Tensor, ...]  # as TENSORS names them


class Inputs:
    """A mask [batch, coarse, coarse] with its number of packed rows, and the tables that the alternatives need."""

    def __init__(self, batch: int, coarse: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.mask = (torch.rand(batch, coarse, coarse, generator=generator) < 1 / 3).to(device)
        self.wanted = _tensors(
            mixed_scale_layout(self.mask, scale_factor=SCALE, num_prefix=PREFIX, backend="reference")
        )
        self.total = len(self.wanted[-1])
        regions, side = coarse**2, coarse * SCALE
        cells = torch.arange(side**2, dtype=torch.int32).view(coarse, SCALE, coarse, SCALE)
        # int32 [regions, s * s]: candidates of the fine tokens of each region.
        self.fine = (PREFIX + regions + cells.transpose(1, 2).reshape(regions, -1)).to(device)
        self.coarse = torch.arange(PREFIX, PREFIX + regions, dtype=torch.int32, device=device)
        self.prefix = torch.arange(PREFIX, dtype=torch.int32, device=device)

    @property
    def bytes(self) -> int:
        """Bytes of the mask, of `region_start` and of both indices."""
        return self.mask.numel() * (1 + 4) + self.total * 2 * 4

    def ours(self, backend: str) -> Layout:
        """Offsets and indices of a backend."""
        return _tensors(
            mixed_scale_layout(
                self.mask, scale_factor=SCALE, num_prefix=PREFIX, total_tokens=self.total, backend=backend
            )
        )

    def repeat(self) -> Layout:
        """The same tensors, with every region repeated once per token; the prefix tokens are an extra first region."""
        num_tokens, cu_seqlens, region_start = self._offsets()
        first = torch.cat([cu_seqlens[:-1, None], region_start.view(len(num_tokens), -1)], dim=1)  # [batch, 1 + Nc]
        ends = torch.cat([first.flatten()[1:], cu_seqlens[-1:]])
        region = torch.arange(first.numel(), dtype=torch.int32, device=first.device)
        region = region.repeat_interleave(ends - first.flatten(), output_size=self.total)
        local = torch.arange(self.total, dtype=torch.int32, device=first.device) - first.flatten()[region]
        image, place = region // first.shape[1], region % first.shape[1]
        is_fine = F.pad(self.mask.flatten(1), (1, 0)).flatten()[region]
        is_prefix, place = place == 0, (place - 1).clamp_min(0)
        patch = torch.where(is_fine, self.fine[place, local % SCALE**2], self.coarse[place])
        return num_tokens, cu_seqlens, region_start, image, torch.where(is_prefix, local, patch)

    def nonzero(self) -> Layout:
        """The same tensors, from the active entries of a table [batch, prefix + regions * s * s]."""
        num_tokens, cu_seqlens, region_start = self._offsets()
        batch, fine = len(num_tokens), self.mask.flatten(1)[:, :, None]  # [batch, Nc, 1]
        active = fine.expand(-1, -1, SCALE**2).clone()
        active[:, :, 0] = True
        candidate = torch.where(fine, self.fine, self.coarse[:, None]).flatten(1)
        candidate = torch.cat([self.prefix.expand(batch, -1), candidate], dim=1)
        active = F.pad(active.flatten(1), (PREFIX, 0), value=True)
        place = torch.nonzero_static(active.flatten(), size=self.total).flatten()
        image = (place // active.shape[1]).int()
        return num_tokens, cu_seqlens, region_start, image, candidate.flatten()[place]

    def _offsets(self) -> tuple[Tensor, Tensor, Tensor]:
        size = 1 + self.mask.flatten(1).int() * (SCALE**2 - 1)  # [batch, Nc]
        end = size.cumsum(1, dtype=torch.int32)
        num_tokens = PREFIX + end[:, -1]
        cu_seqlens = F.pad(num_tokens.cumsum(0, dtype=torch.int32), (1, 0))
        return num_tokens, cu_seqlens, cu_seqlens[:-1, None] + PREFIX + end - size


def _tensors(layout: MixedScaleLayout) -> Layout:
    return tuple(getattr(layout, name) for name in TENSORS)


def methods(x: Inputs) -> dict[str, Callable[[], Layout]]:
    """All methods by name; the compiled one only on a GPU."""
    found = {name: partial(x.ours, name) for name in backends_to_time("mixed_scale_layout", x.mask.device, torch.bool)}
    calls: dict[str, Callable[[], Layout]] = {
        **found, "torch repeat_interleave": x.repeat, "torch nonzero": x.nonzero
    }  # fmt: skip
    if x.mask.device.type == "cuda":
        calls["torch repeat_interleave compiled"] = torch.compile(x.repeat, dynamic=False)
    return calls


def check(name: str, actual: Layout, x: Inputs) -> None:
    """Raises AssertionError unless all tensors equal those of the reference."""
    for what, mine, wanted in zip(TENSORS, actual, x.wanted, strict=True):
        assert torch.equal(mine, wanted), f"{name}: {what} differs from the reference"


def make_case(batch: int, coarse: int, device: torch.device) -> Case:
    """All methods on one mask."""
    x = Inputs(batch, coarse, device)
    calls = methods(x)

    def check_all() -> None:
        for name, call in calls.items():
            check(name, call(), x)

    fields = {"shape": f"{batch} x {coarse} x {coarse}", "direction": "fwd", "dtype": "bool"}
    return Case(fields, {**calls}, check_all, bytes=x.bytes)


def cases(setting: Setting) -> list[CaseMaker]:
    """Masks of 224, 384 and 512 pixels."""
    shapes = [(16, 7), (16, 12), (4, 16)]
    if setting.device.type == "cuda":
        shapes = [(256, 7), (64, 16)]
    if setting.quick:
        shapes = [(2, 3)]
    return [partial(make_case, *shape, setting.device) for shape in shapes]


if __name__ == "__main__":
    main("mixed_scale_layout", cases, __doc__)
