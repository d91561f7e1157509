"""The backends of this project on attention buffers, and checks of all implementations against fp64."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from bench.attention.prepared import Prepared
from bench.attention.workloads import Buffers
from bench.passes import backward_alone
from msvit_kernels import testing, varlen_attention

RESULTS = ("out", "dq", "dk", "dv", "dweight")
MAX_ERROR = 0.02  # relative error allowed for other implementations


def prepare_ours(x: Buffers, backend: str, weighted: bool) -> Prepared:
    """A backend of this project, without or with key weights and their gradient."""
    leaves = [*x.leaves, x.weight] if weighted else x.leaves
    weight = x.weight if weighted else None

    def forward() -> Tensor:
        return varlen_attention(x.q, x.k, x.v, x.offsets, x.workload.longest, key_weight=weight, backend=backend)

    return Prepared(forward, backward_alone(forward, leaves, x.dout))


def reference(x: Buffers, dtype: torch.dtype, weighted: bool) -> list[Tensor]:
    """out, dq, dk, dv and, with weights, dweight of the reference backend in a dtype."""
    q, k, v = (leaf.detach().to(dtype).requires_grad_() for leaf in x.leaves)
    weight = None
    if weighted:
        weight = x.weight.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    out = varlen_attention(q, k, v, x.offsets, x.workload.longest, key_weight=weight, backend="reference")
    leaves = [q, k, v] if weight is None else [q, k, v, weight]
    gradients = torch.autograd.grad(out, leaves, x.dout.to(dtype))
    return [out.detach(), *gradients]


class Oracle:
    """Results of the reference on one set of buffers, each computed once, and checks against them."""

    def __init__(self, x: Buffers) -> None:
        self.dtype = x.dtype

        @cache
        def results(dtype: torch.dtype, weighted: bool) -> list[Tensor]:
            with torch.enable_grad():
                return reference(x, dtype, weighted)

        self.results = results

    def judge_ours(self, prepared: Prepared, weighted: bool) -> None:
        """Raises AssertionError if a backend of ours is less accurate than `testing.assert_accurate` requires."""
        eager, oracle = self.results(self.dtype, weighted), self.results(torch.float64, weighted)
        for name, actual, same_dtype, exact in zip(RESULTS, _run(prepared), eager, oracle, strict=False):
            testing.assert_accurate(name, actual, same_dtype, exact)

    def judge_other(self, prepared: Prepared) -> None:
        """Raises AssertionError if a result of another implementation has a relative error above `MAX_ERROR`."""
        actual = [prepared.packed(result) for result in _run(prepared)]
        # Without a mask, gradients of keys also come from padded queries: only the output is comparable.
        names = RESULTS[:4] if prepared.rows is None else RESULTS[:1]
        for name, result, oracle in zip(names, actual, self.results(torch.float64, weighted=False), strict=False):
            error = relative_error(result, oracle, prepared.rows)
            assert error <= MAX_ERROR, f"{name}: relative error {error:.3g} against fp64"


def relative_error(actual: Tensor, oracle: Tensor, rows: Tensor | None = None) -> float:
    """||actual - oracle|| / ||oracle|| over `rows`, or over all rows; NaN counts as infinite."""
    actual, oracle = actual.detach().double(), oracle.double()
    if rows is not None:
        actual, oracle = actual[rows], oracle[rows]
    error = float((actual - oracle).norm() / oracle.norm().clamp_min(1e-30))
    return error if error == error else float("inf")


def _run(prepared: Prepared) -> Sequence[Tensor]:
    with torch.no_grad():
        out = prepared.forward()
    return [out, *prepared.backward()]
