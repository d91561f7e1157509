"""`mixed_scale_embed` as torch sees it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msvit_kernels import consistency, dispatch, validation
from msvit_kernels.calls import MixedScaleEmbed, MixedScaleEmbedBackward, MixedScaleEmbedGradients, Patches
from msvit_kernels.ops.arguments import gradients_schema, options
from msvit_kernels.ops.derivatives import Derivative
from msvit_kernels.ops.registry import define, none_as_empty

_PIXELS = (torch.uint8, *validation.FLOATING_DTYPES)


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
    patches, table, bias = call
    _require_patches(patches)
    weight, num_candidates = patches.weight, patches.regions.scales(patches.num_prefix).num_candidates
    validation.require_array("table", table, weight.dtype, (num_candidates, weight.shape[0]), weight.device)
    if bias is not None:
        validation.require_array("bias", bias, weight.dtype, (weight.shape[0],), weight.device)
    result: Tensor = _function("mixed_scale_embed_fwd", call, backend)(call)
    return result


def _require_patches(patches: Patches) -> None:
    """Raises unless the arguments that forward and backward share are what the kernels take without a check."""
    images, regions, cu_seqlens, batch_index, token_index, num_prefix, weight, patch_size, mean, std = patches
    validation.require_tensor("images", images, 4, _PIXELS, None)
    validation.require_tensor("weight", weight, 4, validation.FLOATING_DTYPES, None)
    device = images.device
    consistency.require_regions(regions, num_prefix, device)
    consistency.require_offsets(cu_seqlens, regions)
    validation.require_tensor("layout.token_index", token_index, 1, (torch.int32,), device)
    total_tokens = token_index.shape[0]
    validation.require_array("layout.token_index", token_index, torch.int32, (total_tokens,), device)
    validation.require_array("layout.batch_index", batch_index, torch.int32, (total_tokens,), device)
    validation.require_int("patch_size", patch_size, 1)
    batch, rows, columns = regions.fine_mask.shape
    side = regions.scale_factor * patch_size
    validation.require_array("images", images, images.dtype, (batch, 3, rows * side, columns * side), device)
    shape = (weight.shape[0], 3, patch_size, patch_size)
    validation.require_array("weight", weight, weight.dtype, shape, device)
    validation.validate_normalisation(images, mean, std, weight.dtype)
    if validation.checks_contents(images):
        consistency.check_layout(regions, num_prefix, total_tokens, cu_seqlens, batch_index, token_index)


def _fake(call: MixedScaleEmbed) -> Tensor:
    weight = call.patches.weight
    return weight.new_empty((call.patches.token_index.shape[0], weight.shape[0]))


def _save(call: MixedScaleEmbed, output: Tensor) -> tuple[Any, ...]:
    return (call.patches,)


def _backward(saved: tuple[Any, ...], dout: Tensor, *, needed: set[str], backend: str | None) -> dict[str, Tensor]:
    (patches,) = saved
    wanted = {f"needs_{name}": name in needed for name in MixedScaleEmbedGradients._fields}
    gradients = _differentiate(MixedScaleEmbedBackward(patches, dout, **wanted), backend)
    return dict(zip(MixedScaleEmbedGradients._fields, gradients, strict=True))


def _run_backward(backward: MixedScaleEmbedBackward, backend: str | None) -> tuple[Tensor, ...]:
    patches, dout = backward.patches, backward.dout
    weight = patches.weight
    _require_patches(patches)
    validation.require_tensor("dout", dout, 2, (weight.dtype,), weight.device)
    validation.require_shape("dout", dout, (patches.token_index.shape[0], weight.shape[0]))
    run = _function("mixed_scale_embed_bwd", backward, backend)
    return none_as_empty(run(backward._replace(dout=dout.contiguous())), like=weight)


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


# The operator is linear in `weight` and in `images`, except for `mean`, and it adds `table` and `bias`. Its derivatives
# of any order are therefore sums of the two operators again, with a tangent in place of `weight` or of `images`.


def _without_mean(patches: Patches, images: Tensor) -> Patches:
    mean = None if patches.mean is None else [0.0, 0.0, 0.0]
    return patches._replace(images=images.contiguous(), mean=mean)


def _tangent(saved: tuple[Any, ...], given: dict[str, Tensor], backend: str | None) -> Tensor:
    (patches,) = saved
    weight = patches.weight
    dim, num_candidates = weight.shape[0], patches.regions.scales(patches.num_prefix).num_candidates
    zero_table = weight.new_zeros((num_candidates, dim))
    terms = []
    if given.keys() & {"weight", "bias", "table"}:
        turned = patches._replace(weight=given.get("weight", torch.zeros_like(weight)).contiguous())
        table, bias = given.get("table", zero_table).contiguous(), given.get("bias")
        bias = None if bias is None else bias.contiguous()
        terms.append(mixed_scale_embed(MixedScaleEmbed(turned, table, bias), backend))
    if "images" in given:
        moved = _without_mean(patches, given["images"])
        terms.append(mixed_scale_embed(MixedScaleEmbed(moved, zero_table), backend))
    tangent: Tensor = sum(terms[1:], terms[0])
    return tangent


def _save_backward(backward: MixedScaleEmbedBackward, output: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (backward,)


def _second_backward(
    saved: tuple[Any, ...], *cotangents: Tensor | None, needed: set[str], backend: str | None
) -> dict[str, Tensor | None]:
    (backward,) = saved
    names = MixedScaleEmbedGradients._fields
    given = {name: x for name, x in zip(names, cotangents, strict=True) if x is not None and x.numel()}
    return {
        "dout": _tangent((backward.patches,), given, backend) if "dout" in needed and given else None,
        **_mixed_gradients(backward, given, needed, backend),
    }


def _mixed_gradients(
    backward: MixedScaleEmbedBackward, given: dict[str, Tensor], needed: set[str], backend: str | None
) -> dict[str, Tensor | None]:
    """Gradient of `images` with a tangent in place of `weight`, and the other way round."""
    patches, dout = backward.patches, backward.dout
    found: dict[str, Tensor | None] = {"images": None, "weight": None}
    if "weight" in given and "images" in needed:
        turned = patches._replace(weight=given["weight"].contiguous())
        found["images"] = _backward((turned,), dout, needed={"images"}, backend=backend)["images"]
    if "images" in given and "weight" in needed:
        moved = _without_mean(patches, given["images"])
        found["weight"] = _backward((moved,), dout, needed={"weight"}, backend=backend)["weight"]
    return found


def _tangent_of_backward(saved: tuple[Any, ...], given: dict[str, Tensor], backend: str | None) -> tuple[Tensor, ...]:
    (backward,) = saved
    names = MixedScaleEmbedGradients._fields
    wanted = {name for name in names if getattr(backward, f"needs_{name}")}
    found = {name: x.zero_() for name, x in zip(names, _fake_backward(backward), strict=True)}
    if "dout" in given:
        found |= _backward((backward.patches,), given["dout"], needed=wanted, backend=backend)
    for name, term in _mixed_gradients(backward, given, wanted, backend).items():
        found[name] = found[name] if term is None else found[name] + term
    return tuple(found.values())


mixed_scale_embed = define(
    "mixed_scale_embed", MixedScaleEmbed, "Tensor", _run, _fake, Derivative(_save, _backward, _tangent)
)
_differentiate = define(
    "mixed_scale_embed_bwd",
    MixedScaleEmbedBackward,
    gradients_schema(MixedScaleEmbedGradients),
    _run_backward,
    _fake_backward,
    Derivative(_save_backward, _second_backward, _tangent_of_backward),
)
