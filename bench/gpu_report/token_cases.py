"""The operators other than attention as cases of the report: every backend against eager and compiled torch.

The inputs and the methods in torch are those of bench/bench_<operator>.py. Minimum bytes: images, tokens or masks are
read once and the result is written once; gradients count the bytes that they read and write. Weights are not counted,
because they are small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from bench import bench_mixed_scale_embed as embed
from bench import bench_mixed_scale_layout as layout
from bench import bench_unpack_to_grid as unpack
from bench.attention.workloads import rotations
from bench.command_line import short_name
from bench.graphs import cache_bytes
from bench.operators.cases import backends_to_time, check_baseline
from bench.passes import backward_alone
from msvit_kernels import testing

Call = Callable[[], Any]
Results = tuple[list[Tensor], list[Tensor]]  # of the reference: in the dtype, in fp64


@dataclass
class Case:
    """One operator in one direction.

    Attributes:
        fields: columns that identify the case.
        methods: makers of calls by name, one for each set of buffers; names of alternatives begin with "torch".
        check: takes a name and its first call; raises AssertionError if the call computes something wrong.
        bytes: minimum bytes moved.
        flop: minimum operations.
    """

    fields: dict[str, Any]
    methods: dict[str, list[Callable[[], Call]]]
    check: Callable[[str, Call], None]
    bytes: float
    flop: float = 0

    @property
    def label(self) -> str:
        return f"{self.fields['operator']} {self.fields['direction']} {self.fields['images']}".strip()


def embed_case(shape: tuple[int, int, int], images: str, backward: bool, device: torch.device) -> Case:
    """`mixed_scale_embed` on uint8 or float images: forward, or the gradients of weight, bias and table."""
    dtype = _dtype(device)
    batch, side, dim = shape
    first = embed.Inputs(batch, side, dim, images, dtype, device)
    moved = first.images.numel() * first.images.element_size() + first.dout.numel() * first.dout.element_size()
    sets = [first, *(embed.Inputs(batch, side, dim, images, dtype, device) for _ in range(_more(moved, device)))]

    def maker(call: Callable[[embed.Inputs], Tensor], x: embed.Inputs) -> Call:
        bound = partial(call, x)
        return backward_alone(bound, x.leaves, x.dout) if backward else bound

    calls: dict[str, Callable[[embed.Inputs], Tensor]] = {
        name: partial(_embed_rows, name)
        for name in backends_to_time("mixed_scale_embed", device, dtype, images_dtype=first.images.dtype)
    }
    calls |= {"torch conv": embed.Inputs.conv, "torch gather": embed.Inputs.gather}
    if device.type == "cuda":
        calls["torch gather compiled"] = torch.compile(embed.Inputs.gather, dynamic=False)
    results = _references(lambda kind: embed.results(first, "reference", backward, kind), dtype)
    names = ("dweight", "dbias", "dtable") if backward else ("out",)
    fields = {"operator": "mixed_scale_embed", "shape": f"{batch} x {side} px, dim {dim}", "images": images}
    return Case(
        fields | {"direction": "bwd" if backward else "fwd", "dtype": short_name(dtype)},
        {name: [partial(maker, call, x) for x in sets] for name, call in calls.items()},
        partial(_check, names, results),
        float(moved),
        6.0 * embed.PATCH**2 * dim * first.patches,
    )


def unpack_case(shape: tuple[int, int, int], backward: bool, device: torch.device) -> Case:
    """`unpack_to_grid`, or its gradient."""
    dtype = _dtype(device)
    batch, coarse, dim = shape
    first = unpack.Inputs(batch, coarse, dim, dtype, device)
    moved = (first.tokens.numel() + first.dgrid.numel()) * first.tokens.element_size()
    sets = [first, *(unpack.Inputs(batch, coarse, dim, dtype, device) for _ in range(_more(moved, device)))]

    def maker(call: Callable[[unpack.Inputs], Tensor], x: unpack.Inputs) -> Call:
        bound = partial(call, x)
        return backward_alone(bound, [x.tokens], x.dgrid) if backward else bound

    calls: dict[str, Callable[[unpack.Inputs], Tensor]] = {
        name: partial(_unpack_grid, name) for name in backends_to_time("unpack_to_grid", device, dtype)
    }
    calls |= {"torch index": unpack.Inputs.index, "torch gather": unpack.Inputs.gather}
    if device.type == "cuda":
        calls["torch index compiled"] = torch.compile(unpack.Inputs.index, dynamic=False)
    results = _references(lambda kind: [unpack.result(first, "reference", backward, kind)], dtype)
    cells = coarse * unpack.SCALE
    fields = {"operator": "unpack_to_grid", "shape": f"{batch} x {dim} x {cells} x {cells}", "images": ""}
    return Case(
        fields | {"direction": "bwd" if backward else "fwd", "dtype": short_name(dtype)},
        {name: [partial(maker, call, x) for x in sets] for name, call in calls.items()},
        partial(_check, ("dtokens",) if backward else ("grid",), results),
        float(moved),
    )


def layout_case(batch: int, coarse: int, device: torch.device) -> Case:
    """`mixed_scale_layout` with a given total, as with a budget."""
    # One set of buffers: the mask is small, and in the model it is in the cache.
    x = layout.Inputs(batch, coarse, device)

    def maker(call: Call) -> Callable[[], Call]:
        return lambda: call

    def check(name: str, call: Call) -> None:
        layout.check(name, call(), x)

    fields = {"operator": "mixed_scale_layout", "shape": f"{batch} x {coarse} x {coarse}", "images": ""}
    methods = {name: [maker(call)] for name, call in layout.methods(x).items()}
    return Case(fields | {"direction": "fwd", "dtype": "bool"}, methods, check, float(x.bytes))


def cases(device: torch.device, quick: bool) -> list[Callable[[], Case]]:
    """Makers of all cases in the order of their importance."""
    batch, side, dim = (2, 64, 48) if quick or device.type == "cpu" else (256, 224, 384)
    shape, coarse = (batch, side, dim), side // (embed.PATCH * embed.SCALE)
    directions = (False, True)
    return [
        *(partial(embed_case, shape, "uint8", backward, device) for backward in directions),
        *(partial(unpack_case, (batch, coarse, dim), backward, device) for backward in directions),
        partial(layout_case, batch, coarse, device),
        *(partial(embed_case, shape, "float", backward, device) for backward in directions),
    ]


def _embed_rows(backend: str, x: embed.Inputs) -> Tensor:
    return x.rows(backend)


def _unpack_grid(backend: str, x: unpack.Inputs) -> Tensor:
    return x.grid(backend)


def _references(make: Callable[[torch.dtype], list[Tensor]], dtype: torch.dtype) -> Callable[[], Results]:
    @cache
    def results() -> Results:
        with torch.enable_grad():
            return make(dtype), make(torch.float64)

    return results


def _check(names: Sequence[str], results: Callable[[], Results], method: str, call: Call) -> None:
    returned = call()
    actual = [returned] if isinstance(returned, Tensor) else list(returned)
    for name, mine, eager, oracle in zip(names, actual, *results(), strict=True):
        if method.startswith("torch"):
            check_baseline(f"{method} {name}", mine, oracle)
        else:
            testing.assert_accurate(f"{method} {name}", mine, eager, oracle)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _more(moved: float, device: torch.device) -> int:
    """Number of sets of buffers after the first."""
    return 1 if device.type == "cpu" else rotations(moved, cache_bytes(device)) - 1
