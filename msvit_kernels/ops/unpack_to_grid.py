"""`unpack_to_grid` as torch sees it."""

from typing import Any

from torch import Tensor

from msvit_kernels import consistency, dispatch, validation
from msvit_kernels.calls import Regions, UnpackToGrid, UnpackToGridBackward
from msvit_kernels.ops.derivatives import Derivative
from msvit_kernels.ops.registry import define


def _run(call: UnpackToGrid, backend: str | None) -> Tensor:
    tokens = call.tokens
    validation.validate_rows("tokens", tokens)
    _require_regions(call.regions, tokens, tokens.shape[0])
    run = dispatch.resolve_function("unpack_to_grid", "unpack_to_grid_fwd", backend, tokens.device.type, tokens.dtype)
    result: Tensor = run(call)
    return result


def _fake(call: UnpackToGrid) -> Tensor:
    height, width = call.regions.scales(num_prefix=0).grid_size
    return call.tokens.new_empty((call.regions.fine_mask.shape[0], call.tokens.shape[1], height, width))


def _save(call: UnpackToGrid, output: Tensor) -> tuple[Any, ...]:
    return call.regions, call.tokens.shape[0]


def _backward(saved: tuple[Any, ...], dgrid: Tensor, *, needed: set[str], backend: str | None) -> dict[str, Tensor]:
    return {"tokens": _differentiate(UnpackToGridBackward(dgrid, *saved), backend)}


def _tangent(saved: tuple[Any, ...], given: dict[str, Tensor], backend: str | None) -> Tensor:
    regions, _ = saved
    tangent: Tensor = unpack_to_grid(UnpackToGrid(given["tokens"].contiguous(), regions), backend)
    return tangent


def _run_backward(backward: UnpackToGridBackward, backend: str | None) -> Tensor:
    dgrid, regions, total_tokens = backward
    validation.require_tensor("dgrid", dgrid, 4, validation.FLOATING_DTYPES, None)
    validation.require_int("total_tokens", total_tokens, 0)
    _require_regions(regions, dgrid, total_tokens)
    shape = (regions.fine_mask.shape[0], dgrid.shape[1], *regions.scales(num_prefix=0).grid_size)
    validation.require_shape("dgrid", dgrid, shape)
    run = dispatch.resolve_function("unpack_to_grid", "unpack_to_grid_bwd", backend, dgrid.device.type, dgrid.dtype)
    result: Tensor = run(backward._replace(dgrid=dgrid.contiguous()))
    return result


def _require_regions(regions: Regions, values: Tensor, total_tokens: int) -> None:
    consistency.require_regions(regions, 0, values.device)
    if validation.checks_contents(values):
        consistency.check_layout(regions, None, total_tokens)


def _fake_backward(backward: UnpackToGridBackward) -> Tensor:
    return backward.dgrid.new_empty((backward.total_tokens, backward.dgrid.shape[1]))


# The gradient is linear in dgrid: its own derivatives are the two operators again.


def _save_backward(backward: UnpackToGridBackward, output: Tensor) -> tuple[Any, ...]:
    return backward.regions, backward.total_tokens


def _second_backward(
    saved: tuple[Any, ...], cotangent: Tensor, *, needed: set[str], backend: str | None
) -> dict[str, Tensor]:
    return {"dgrid": _tangent(saved, {"tokens": cotangent}, backend)}


def _tangent_of_backward(saved: tuple[Any, ...], given: dict[str, Tensor], backend: str | None) -> Tensor:
    return _backward(saved, given["dgrid"], needed=set(), backend=backend)["tokens"]


unpack_to_grid = define("unpack_to_grid", UnpackToGrid, "Tensor", _run, _fake, Derivative(_save, _backward, _tangent))
_differentiate = define(
    "unpack_to_grid_bwd",
    UnpackToGridBackward,
    "Tensor",
    _run_backward,
    _fake_backward,
    Derivative(_save_backward, _second_backward, _tangent_of_backward),
)
