"""The models that bench/latency.py compares, and the check that their token modes agree.

All share the weights of one randomly initialised timm ViT-S/16: a time does not depend on them.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

import msvit
from bench.failures import RefusalError
from bench.vit.stopwatch import Stopwatch
from bench.vit.tokens import COARSE, IMAGE_SIZES, PATCH, image_size
from msvit.policies import Budget
from msvit_kernels import testing

MODES = ("masked", "trimmed", "packed")
_TIMM_NAME = "vit_small_patch16_224"


@dataclass(frozen=True)
class Method:
    """One model on images of one size.

    Attributes:
        name: "dense" or a token mode, followed by " compiled" and " graph" if it runs in that form.
        wanted: requested tokens.
        tokens: patch tokens per image, mean of a batch.
        image_size: side of the images in pixels.
        gmacs: 1e9 multiply-adds of active tokens per image, mean of a batch.
        call: takes uint8 images [batch, 3, image_size, image_size].
    """

    name: str
    wanted: int
    tokens: float
    image_size: int
    gmacs: float
    call: Callable[[Tensor], Any]


class Zoo:
    """Builds the models, once each.

    Args:
        images: a function from a size to uint8 images [n, 3, size, size].
        device: device of the weights.
        dtype: dtype of the weights.
        stopwatch: stopwatch that watches the blocks of every model.
    """

    def __init__(
        self, images: Callable[[int], Tensor], device: torch.device, dtype: torch.dtype, stopwatch: Stopwatch
    ) -> None:
        self.images, self.device, self.dtype, self.stopwatch = images, device, dtype, stopwatch
        self.base: Any = timm.create_model(_TIMM_NAME).to(device, dtype).eval()
        self._dense: dict[int, nn.Module] = {}
        self._mixed: dict[int, msvit.MixedScaleVisionTransformer] = {}

    def dense(self, tokens: int) -> Method:
        """The plain model at the square number nearest to `tokens`."""
        side = max(1, round(tokens**0.5))
        size = side * PATCH
        if size not in self._dense:
            self._dense[size] = self.stopwatch.watch(self.plain(size))
        model = self._dense[size]
        return Method("dense", tokens, side**2, size, msvit.macs(model, side**2) / 1e9, self.dense_call(model))

    def dense_call(self, model: nn.Module, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
        """A function from uint8 images to the logits of a plain model, normalisation included."""
        wide = torch.promote_types(dtype or self.dtype, torch.float32)
        mean, std = (
            torch.tensor(self.base.pretrained_cfg[key], device=self.device, dtype=wide).view(3, 1, 1)
            for key in ("mean", "std")
        )

        def call(images: Tensor) -> Tensor:
            logits: Tensor = model(((images / 255 - mean) / std).to(dtype or self.dtype))
            return logits

        return call

    def mixed(self, mode: str, tokens: int, batch: int) -> Method:
        """The mixed-scale model under a budget, in one token mode."""
        size = image_size(tokens)
        model = self.mixed_model(size)
        counts = model.scales.patches(self.fine_mask(size, tokens, batch).flatten(1).sum(1)).tolist()
        gmacs = sum(msvit.macs(model, count) for count in counts) / len(counts) / 1e9
        call = partial(self._call_mixed, model, mode, Budget(tokens))
        return Method(mode, tokens, sum(counts) / len(counts), size, gmacs, call)

    def fine_mask(self, size: int, tokens: int, batch: int) -> Tensor:
        """Regions that the entropy gate makes fine in the first batch of the images."""
        model = self.mixed_model(size)
        return Budget(tokens)(model.gate(self.images(size)[:batch]), model.scale_factor).fine_mask

    def mixed_model(self, size: int) -> msvit.MixedScaleVisionTransformer:
        """The mixed-scale model for images of `size` pixels, with the entropy gate."""
        if size not in self._mixed:
            self._mixed[size] = self.stopwatch.watch(self.bare_mixed(size))
        return self._mixed[size]

    def bare_mixed(self, size: int) -> msvit.MixedScaleVisionTransformer:
        """A mixed-scale model without hooks."""
        return msvit.from_timm(self.plain(size), COARSE, gate="entropy").to(self.device).eval()

    def check(self, size: int) -> None:
        """Compares packed and trimmed with masked logits of two images, half of whose regions are fine.

        Raises:
            RefusalError: they differ by more than rounding.
        """
        model = self.mixed_model(size)
        tokens = int(model.scales.mean_patches(0.5))
        images, mask = self.images(size)[:2], self.fine_mask(size, tokens, 2)
        logits = {mode: logits_of(model, mode, images, mask) for mode in MODES}
        oracle = logits_of(copy.deepcopy(model).double(), "masked", images, mask)
        for mode in ("packed", "trimmed"):
            require_same(f"{mode} MSViT-S at {size} px", logits[mode], logits["masked"], oracle, "masked")

    @staticmethod
    def _call_mixed(model: msvit.MixedScaleVisionTransformer, mode: str, policy: Budget, images: Tensor) -> Tensor:
        model.token_mode, model.policy = mode, policy
        logits: Tensor = model(images)
        return logits

    def plain(self, size: int) -> nn.Module:
        """A model for images of `size` pixels that shares all weights but the position encodings."""
        with torch.device("meta"):
            model: Any = timm.create_model(_TIMM_NAME, img_size=size)
        state = self.base.state_dict()
        shape = model.pos_embed.shape
        state["pos_embed"] = torch.randn(shape, device=self.device).mul_(0.02).to(self.dtype)
        model.load_state_dict(state, assign=True)
        model.eval()
        return model


@torch.inference_mode()
def logits_of(model: msvit.MixedScaleVisionTransformer, mode: str, images: Tensor, mask: Tensor) -> Tensor:
    """Logits [batch, classes] of a token mode for a given mask of fine regions."""
    model.token_mode = mode
    logits: Tensor = model(images, fine_mask=mask)
    return logits


def require_same(what: str, logits: Tensor, eager: Tensor, oracle: Tensor, other: str = "uncompiled") -> None:
    """Raises RefusalError if logits are less accurate than `testing.assert_accurate` requires."""
    try:
        testing.assert_accurate("logits", logits, eager, oracle)
    except AssertionError as error:
        raise RefusalError(f"{what} differs from {other}, so it is not timed: {error}") from error


def methods_for(zoo: Zoo, tokens: Sequence[int], batch: int) -> tuple[list[list[Method]], list[str]]:
    """The methods to time at a batch size.

    Returns:
        A list for each number of tokens, with dense before the three modes, then lists with the dense models of 196 and
        576 tokens, the reference of speed-ups, unless they are among the others; and notes on impossible methods.
    """
    rows, notes = [], []
    references = set()
    for count in tokens:
        methods = [zoo.dense(count)]
        try:
            references.add(IMAGE_SIZES[image_size(count)])
            methods += [zoo.mixed(mode, count, batch) for mode in MODES]
        except ValueError as error:
            notes.append(str(error))
        rows.append(methods)
    rows += [[zoo.dense(reference)] for reference in sorted(references - set(tokens))]
    return rows, notes
