"""`mixed_scale_embed` as torch sees it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from msvit_kernels import dispatch, validation
from msvit_kernels.calls import MixedScaleEmbed, MixedScaleEmbedBackward, MixedScaleEmbedGradients
from msvit_kernels.ops.arguments import gradients_schema, options
from msvit_kernels.ops.registry import Derivative, define, none_as_empty


def _function(name: str, call: MixedScaleEmbed | MixedScaleEmbedBackward, backend: str | None) -> Callable[..., Any]:
    images, dtype = call.patches.images, call.patches.weight.dtype
    return dispatch.resolve_function(
        "mixed_scale_embed",
        name,
        backend,
        images.device.type,
        dtype,
        options=options(call),
        images_dtype=images.dtype,
    )


def _run(call: MixedScaleEmbed, backend: str | None) -> Tensor:
    patches = call.patches
    if validation.checks_contents(patches.images):
        validation.check_indices("layout.batch_index", patches.batch_index, patches.images.shape[0])
        validation.check_indices("layout.token_index", patches.token_index, call.table.shape[0])
    result: Tensor = _function("mixed_scale_embed_fwd", call, backend)(call)
    return result


def _fake(call: MixedScaleEmbed) -> Tensor:
    weight = call.patches.weight
    return weight.new_empty((call.patches.token_index.shape[0], weight.shape[0]))


def _save(call: MixedScaleEmbed, output: Tensor) -> tuple[Any, ...]:
    return (call.patches,)


def _backward(saved: tuple[Any, ...], dout: Tensor, *, needed: set[str], backend: str | None) -> Any:
    (patches,) = saved
    backward = MixedScaleEmbedBackward(
        patches,
        dout,
        needs_images="images" in needed,
        needs_weight="weight" in needed,
        needs_bias="bias" in needed,
        needs_table="table" in needed,
    )
    return MixedScaleEmbedGradients(*_differentiate(backward, backend))


def _run_backward(backward: MixedScaleEmbedBackward, backend: str | None) -> tuple[Tensor, ...]:
    run = _function("mixed_scale_embed_bwd", backward, backend)
    return none_as_empty(run(backward._replace(dout=backward.dout.contiguous())), like=backward.patches.weight)


def _fake_backward(backward: MixedScaleEmbedBackward) -> tuple[Tensor, ...]:
    patches = backward.patches
    images, weight = patches.images, patches.weight
    dim, num_candidates = weight.shape[0], patches.regions.scales(patches.num_prefix).num_candidates
    gradients = MixedScaleEmbedGradients(
        images=images.new_empty(images.shape) if backward.needs_images else None,
        weight=weight.new_empty(weight.shape) if backward.needs_weight else None,
        bias=weight.new_empty(dim) if backward.needs_bias else None,
        table=weight.new_empty((num_candidates, dim)) if backward.needs_table else None,
    )
    return none_as_empty(gradients, like=weight)


mixed_scale_embed = define("mixed_scale_embed", MixedScaleEmbed, "Tensor", _run, _fake, Derivative(_save, _backward))
_differentiate = define(
    "mixed_scale_embed_bwd",
    MixedScaleEmbedBackward,
    gradients_schema(MixedScaleEmbedGradients),
    _run_backward,
    _fake_backward,
)
