"""State dicts and checkpoints of a Segmenter: its own, those of the original repository and those of mmsegmentation.

Tensors do not determine the outputs of a model: repositories differ in the epsilon of their norms and in the
interpolation of position encodings. A Segmenter keeps both in the metadata of its state dict, which adds no name to it,
and adopts those of the state dict that it loads.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from msvit.checkpoint import check_patch_size, convert_backbone, optional_names, resample_gate_positions
from msvit.checkpoint_files import SETTINGS, settings_of, with_settings
from msvit.models.decoders import Decoder, MaskTransformer
from msvit.models.positions import INTERPOLATIONS, resample_grid
from msvit.models.segmenter_names import OWN_PARTS, Origin, origin_of, renamed
from msvit.models.vit import MixedScaleVisionTransformer

# Kinds of decoder, the name of a tensor that only that kind has, here and in mmsegmentation, and its axis of classes.
_DECODERS = (
    ("mask", ("decoder.cls_emb", "decode_head.cls_emb"), 1),
    ("linear", ("decoder.head.weight", "decode_head.conv_seg.weight"), 0),
)
_KEEP = "; load_head=False keeps the model's own decoder"


class SegmenterCheckpoints(nn.Module):
    """Base class of `Segmenter`: `state_dict`, `load_state_dict` and the conversion of checkpoints."""

    encoder: MixedScaleVisionTransformer
    decoder: Decoder
    num_classes: int

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {})
        if prefix[:-1] in metadata:
            metadata[prefix[:-1]][SETTINGS] = self._settings()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any], *more: Any
    ) -> None:
        given = {name.removeprefix(prefix): state_dict.pop(name) for name in [*state_dict] if name.startswith(prefix)}
        state, settings, origin = self._own(given, local_metadata.get(SETTINGS))
        if origin is not None:  # other repositories have no gate
            own = self.state_dict(keep_vars=True)
            state |= {name: tensor for name, tensor in own.items() if name.startswith(OWN_PARTS)}
        state_dict.update({prefix + name: tensor for name, tensor in state.items()})
        if settings is not None:
            self._adopt(settings)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *more)

    def convert_checkpoint(self, given: Mapping[str, Tensor], load_head: bool) -> tuple[dict[str, Tensor], set[str]]:
        """Converts a checkpoint, see `msvit.checkpoint.convert_backbone`; `load_head` concerns the decoder."""
        decoder = {name for name in self.state_dict() if name.startswith("decoder.")}
        if not any(name.startswith(("encoder.", "backbone.")) for name in given):
            state, optional = self._convert_classifier(given)
            return with_settings(state, self._settings()), optional | decoder
        state, settings, _ = self._own(given, settings_of(given))
        settings = self._settings() if settings is None else _checked(settings)
        if not load_head:
            state = {name: x for name, x in state.items() if not name.startswith(("decoder.", "decode_head."))}
        self._refuse_other_model(state)
        encoder = {name.removeprefix("encoder."): x for name, x in state.items() if name.startswith("encoder.")}
        check_patch_size(encoder, self.encoder)
        resample_gate_positions(encoder, self.encoder)
        _resample_positions(encoder, self.encoder, settings["pos_embed_interpolation"])
        state |= {f"encoder.{name}": tensor for name, tensor in encoder.items()}
        optional = {f"encoder.{name}" for name in optional_names(encoder, self.encoder)}
        return with_settings(state, settings), optional if load_head else optional | decoder

    def _convert_classifier(self, given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], set[str]]:
        """Converts a checkpoint of the backbone, whose classifier and attention pooling have no use."""
        names = {name: name for name in given if not name.startswith(("head_dist.", "attn_pool."))}
        if "dist_token" in names and self.encoder.reg_token is not None:
            names["dist_token"] = "reg_token"
        state, optional = convert_backbone(self.encoder, {new: given[old] for old, new in names.items()}, False)
        return {f"encoder.{name}": tensor for name, tensor in state.items()}, {f"encoder.{name}" for name in optional}

    def _own(self, given: Mapping[str, Tensor], settings: Any) -> tuple[dict[str, Tensor], Any, Origin | None]:
        """The tensors by the model's names, their settings, and their repository if it is another one."""
        origin = origin_of(given) if settings is None else None
        if origin is None:
            return dict(given), settings, None
        state = renamed(given, origin, self.state_dict().keys())
        eps = {
            name: origin.encoder_eps if name.startswith("encoder.") else origin.decoder_eps for name in self._norms()
        }
        return state, {"eps": eps, "pos_embed_interpolation": origin.interpolation}, origin

    def _norms(self) -> dict[str, Any]:
        """The norms of encoder and decoder by name, without those of a gate, a policy or reducers."""
        return {
            name: module
            for name, module in self.named_modules()
            if isinstance(getattr(module, "eps", None), float) and not f"{name}.".startswith(OWN_PARTS)
        }

    def _settings(self) -> dict[str, Any]:
        return {
            "eps": {name: norm.eps for name, norm in self._norms().items()},
            "pos_embed_interpolation": self.encoder.pos_embed_interpolation,
        }

    def _adopt(self, settings: Any) -> None:
        norms = self._norms()
        for name, eps in _checked(settings)["eps"].items():
            if name in norms:
                norms[name].eps = eps
        self.encoder.pos_embed_interpolation = settings["pos_embed_interpolation"]

    def _refuse_other_model(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError if a checkpoint has another width, decoder or number of classes."""
        if "encoder.dist_token" in state:
            raise ValueError("it has a distillation token; make the encoder with reg_tokens=1")
        patches = state.get("encoder.patch_embed.proj.weight")
        if patches is not None and patches.ndim and patches.shape[0] != self.encoder.embed_dim:
            raise ValueError(f"it has width {patches.shape[0]}, expected {self.encoder.embed_dim}")
        expected = "mask" if isinstance(self.decoder, MaskTransformer) else "linear"
        for kind, names, axis in _DECODERS:
            tensor = next((state[name] for name in names if name in state), None)
            if tensor is not None and kind != expected:
                raise ValueError(f"it has a {kind} decoder, expected a {expected} decoder{_KEEP}")
            if tensor is not None and tensor.ndim > axis and tensor.shape[axis] != self.num_classes:
                raise ValueError(f"it has {tensor.shape[axis]} classes, expected {self.num_classes}{_KEEP}")


def _checked(settings: Any) -> dict[str, Any]:
    """Raises ValueError unless `settings` are those of a Segmenter."""
    given = settings if isinstance(settings, Mapping) else {}
    eps, interpolation = given.get("eps"), given.get("pos_embed_interpolation")
    values = eps.values() if isinstance(eps, Mapping) else [None]
    if interpolation not in INTERPOLATIONS or not all(isinstance(value, float) and 0 < value < 1 for value in values):
        raise ValueError(
            f"metadata {SETTINGS}: expected eps between 0 and 1 by the name of a norm, and pos_embed_interpolation "
            f"{' or '.join(INTERPOLATIONS)}, got {settings!s:.80}"
        )
    return dict(settings)


def _resample_positions(state: dict[str, Tensor], encoder: MixedScaleVisionTransformer, interpolation: str) -> None:
    """Resamples position encodings to the encoder's grid, in place; their own grid is assumed to be a square."""
    given, own = state.get("pos_embed"), encoder.pos_embed
    if given is None or own is None or given.ndim != 3 or given.shape[1] == own.shape[1]:
        return
    num_prefix = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    side = math.isqrt(max(given.shape[1] - num_prefix, 0))
    if not side or side**2 + num_prefix != given.shape[1]:
        raise ValueError(
            f"expected encoder.pos_embed for {own.shape[1]} tokens or for {num_prefix} tokens and a square number of "
            f"patches, got {given.shape[1]}"
        )
    prefix, grid = given[:, :num_prefix], given[0, num_prefix:].view(side, side, -1)
    resampled = resample_grid(grid, encoder.grid_size, interpolation).flatten(0, 1)
    state["pos_embed"] = torch.cat([prefix, resampled[None]], dim=1)
