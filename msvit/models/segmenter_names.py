"""Names of parameters in state dicts of the original Segmenter repository and of mmsegmentation.

The original has timm's names in its encoder and those of `msvit.models.decoders` in its decoder, beside the unused
classifiers of the encoder. mmsegmentation has names of its own.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

# Parts of an encoder that only msvit has.
OWN_PARTS = ("encoder.gate.", "encoder.policy.", "encoder.reducers.")
_MMSEGMENTATION_PARTS = ("backbone.", "decode_head.")


@dataclass(frozen=True)
class Origin:
    """A repository whose state dicts load.

    Attributes:
        encoder_eps, decoder_eps: epsilon of the norms in its encoder and in its decoder.
        interpolation: interpolation of its position encodings.
    """

    encoder_eps: float
    decoder_eps: float
    interpolation: str


ORIGINAL = Origin(1e-5, 1e-5, "bilinear")
# The configurations set 1e-6 for the backbone; mmcv's `build_norm_layer` gives the head 1e-5.
MMSEGMENTATION = Origin(1e-6, 1e-5, "bicubic")

_LAYER = {
    "ln1": "norm1",
    "ln2": "norm2",
    "attn.attn.in_proj_": "attn.qkv.",
    "attn.attn.out_proj": "attn.proj",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
}
_OUTSIDE_LAYERS = {
    "backbone.patch_embed.projection": "encoder.patch_embed.proj",
    "backbone.ln1": "encoder.norm",
    "decode_head.dec_proj": "decoder.proj_dec",
    "decode_head.patch_proj.weight": "decoder.proj_patch",
    "decode_head.classes_proj.weight": "decoder.proj_classes",
    "decode_head.conv_seg": "decoder.head",
}
_PATCH_BIAS = "encoder.patch_embed.proj.bias"


def origin_of(names: Collection[str]) -> Origin | None:
    """The repository of a state dict with these names and without settings; None if it is msvit's or only a part.

    A state dict of msvit whose gate has no parameters has the same names as one of the original.
    """
    if any(name.startswith(_MMSEGMENTATION_PARTS) for name in names):
        return MMSEGMENTATION
    if any(name.startswith(OWN_PARTS) for name in names) or "encoder.patch_embed.proj.weight" not in names:
        return None
    return ORIGINAL


def renamed(given: Mapping[str, Tensor], origin: Origin, own: Collection[str]) -> dict[str, Tensor]:
    """Converts a state dict of another repository.

    Args:
        given: tensors by name.
        origin: the repository.
        own: names of the model's tensors.

    Returns:
        Tensors by the model's names, without unused ones. One that the model lacks keeps the name in `given`.
    """
    convert = _from_mmsegmentation if origin is MMSEGMENTATION else _from_original
    unused: tuple[str, ...] = (
        ("auxiliary_head.",) if origin is MMSEGMENTATION else ("encoder.head.", "encoder.head_dist.")
    )
    if "decode_head.cls_emb" in given:
        unused += ("decode_head.conv_seg.",)  # only early versions of the mask head have it
    state = {}
    for name, tensor in given.items():
        if not name.startswith(unused):
            new = convert(name)
            if new in own:
                state[new] = _reshaped(name, tensor)
            else:
                state[name] = tensor
    weight = given.get("backbone.patch_embed.projection.weight")
    if weight is not None and _PATCH_BIAS in own and _PATCH_BIAS not in state:
        state[_PATCH_BIAS] = weight.new_zeros(weight.shape[0])  # mmsegmentation has none since 1.2.0
    return state


def _from_original(name: str) -> str:
    # timm counts the distillation token of DeiT among the registers, which follow the class token.
    return "encoder.reg_token" if name == "encoder.dist_token" else name


def _from_mmsegmentation(name: str) -> str:
    match = re.fullmatch(r"(backbone|decode_head)\.layers\.(\d+)\.(.+)", name)
    if match is not None:
        part, index, rest = match.groups()
        return f"{'encoder' if part == 'backbone' else 'decoder'}.blocks.{index}.{_replaced(rest, _LAYER)}"
    name = _replaced(name, _OUTSIDE_LAYERS)
    return name.replace("backbone.", "encoder.", 1).replace("decode_head.", "decoder.", 1)


def _replaced(name: str, beginnings: Mapping[str, str]) -> str:
    for old, new in beginnings.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    """The tensor as the model has it: mmsegmentation has linear layers for two matrices, a convolution for a layer."""
    if tensor.ndim == 2 and name in ("decode_head.patch_proj.weight", "decode_head.classes_proj.weight"):
        return tensor.mT.contiguous()
    if name == "decode_head.conv_seg.weight" and tensor.shape[2:] == (1, 1):
        return tensor.flatten(1)
    return tensor
