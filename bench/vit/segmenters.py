"""The models that bench/segmentation.py compares, and the check that they compute the same masks.

All share the weights of one randomly initialised Segmenter: a time does not depend on them.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import msvit
from bench.vit.plain_segmenter import PlainSegmenter
from bench.vit.tokens import COARSE, PATCH
from bench.vit.zoo import require_same
from msvit.models.decoders import NORM_EPS, MaskTransformer
from msvit.policies import Budget
from msvit_kernels import MixedScaleLayout, unpack_to_grid

NUM_CLASSES = 150  # of ADE20K
# Token mode of the encoder and tokens that the decoder gets.
MIXED = {"masked": ("masked", "grid"), "packed grid": ("packed", "grid"), "packed": ("packed", "packed")}
METHODS = ("dense", *MIXED)
MASKS = ("grid", "pixels")
CHECKED = 2  # images whose masks are compared


@dataclass(frozen=True)
class Method:
    """One model on a batch of images.

    Attributes:
        name: one of `METHODS`.
        masks: resolution of the masks, one of `MASKS`.
        wanted: requested patch tokens per image.
        tokens: patch tokens per image, mean of the batch.
        encoder_gmacs, gmacs: 1e9 multiply-adds per image without and with the decoder, of active tokens, mean of the
            batch.
        call: runs the model.
    """

    name: str
    masks: str
    wanted: int
    tokens: float
    encoder_gmacs: float
    gmacs: float
    call: Callable[[], Any]

    @property
    def key(self) -> str:
        """Name of the samples; masked tokens take the same time for any number of active ones."""
        return f"{self.name} {self.masks}" + f" {self.wanted}" * (self.name != "masked")


class Segmenters:
    """A plain and a mixed-scale Segmenter with the same weights.

    Args:
        size: size of the encoder, "tiny" or "small".
        image_size: side of the images in pixels.
        images: uint8 [n, 3, image_size, image_size].
        dtype: dtype of the weights.
    """

    def __init__(self, size: str, image_size: int, images: Tensor, dtype: torch.dtype) -> None:
        self.size, self.images = size, images
        norm_layer: Any = partial(nn.LayerNorm, eps=NORM_EPS)
        name = f"vit_{size}_patch{PATCH}_224"
        vit: Any = timm.create_model(name, img_size=image_size, num_classes=0, norm_layer=norm_layer)
        vit.to(images.device, dtype).eval()
        encoder = msvit.from_timm(vit, COARSE, gate="entropy").to(images.device)
        self.mixed = msvit.Segmenter(encoder, NUM_CLASSES).eval()
        assert isinstance(self.mixed.decoder, MaskTransformer)
        self.plain = PlainSegmenter(vit, self.mixed.decoder, encoder.num_heads).eval()

    @property
    def cells(self) -> int:
        """Fine patches of an image."""
        return self.mixed.encoder.scales.most_patches

    def methods(self, tokens: Sequence[int], batch: int, masks: str) -> list[Method]:
        """The dense method, then the mixed-scale ones for each number of tokens.

        Raises:
            ValueError: a number of tokens that images of this size cannot have.
        """
        images = self.images[:batch]
        return [
            Method(
                "dense", masks, self.cells, self.cells, *self._gmacs([self.cells], "grid"), self._dense(masks, images)
            ),
            *(self._mixed(name, masks, count, images) for count in tokens for name in MIXED),
        ]

    @torch.inference_mode()
    def check(self, tokens: int) -> None:
        """Compares all methods with the plain decoder, in fp64, on replicated tokens of the masked encoder.

        Raises:
            RefusalError: they differ by more than rounding.
            ValueError: images of this size cannot have `tokens` tokens.
        """
        images, label = self.images[:CHECKED], f"Segmenter ({self.size})"
        mask = Budget(tokens)(self.mixed.gate(images), self.mixed.encoder.scale_factor).fine_mask
        plain, mixed = copy.deepcopy(self.plain).double(), copy.deepcopy(self.mixed).double()
        oracle = plain.decode(_replicated(mixed, images, mask))
        eager = self.plain.decode(_replicated(self.mixed, images, mask))
        for name in MIXED:
            logits = self._in_mode(name).forward_grid(images, mask)
            require_same(f"{name} {label}", logits, eager, oracle, "the plain decoder on replicated tokens")
        one, fine = images[:1], torch.ones_like(mask[:1])
        logits = self._in_mode("packed").forward_grid(one, fine)
        require_same(f"packed {label}, all fine,", logits, self.plain(one), plain(one), "dense")

    def _dense(self, masks: str, images: Tensor) -> Callable[[], Any]:
        if masks == "grid":
            return lambda: self.plain(images)
        size = images.shape[2:]
        return lambda: F.interpolate(self.plain(images), size=size, mode="bilinear", align_corners=False)

    def _mixed(self, name: str, masks: str, tokens: int, images: Tensor) -> Method:
        policy, encoder = Budget(tokens), self.mixed.encoder
        fine = policy(encoder.gate(images), encoder.scale_factor).fine_mask
        counts = encoder.scales.patches(fine.flatten(1).sum(1)).tolist()
        gmacs = self._gmacs(counts, MIXED[name][1])

        def call() -> Tensor:
            model = self._in_mode(name)
            model.policy = policy
            return model.forward_grid(images) if masks == "grid" else model(images)

        return Method(name, masks, tokens, sum(counts) / len(counts), *gmacs, call)

    def _gmacs(self, counts: list[int], decode: str) -> tuple[float, float]:
        """1e9 MACs without and with the decoder, mean of images with such numbers of tokens."""
        self.mixed.decode = decode
        models = self.mixed.encoder, self.mixed
        encoder, whole = (sum(msvit.macs(model, n) for n in counts) / len(counts) / 1e9 for model in models)
        return encoder, whole

    def _in_mode(self, name: str) -> msvit.Segmenter:
        self.mixed.token_mode, self.mixed.decode = MIXED[name]
        return self.mixed


def _replicated(model: msvit.Segmenter, images: Tensor, mask: Tensor) -> Tensor:
    """[batch, dim, Hf, Wf]: tokens of the masked encoder, each coarse one at all its cells."""
    model.token_mode = "masked"
    tokens, layout = model.encoder.forward_features(images, mask)
    assert isinstance(layout, MixedScaleLayout)
    return unpack_to_grid(tokens, layout)
