"""The models that bench/latency.py compares, what each is called with, and the check that they agree.

All share the weights of one randomly initialised timm ViT-S/16: a time does not depend on them.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import common
import timm
import torch
import torch._dynamo.config
import torch.nn.functional as F
from torch import Tensor, nn

import msvit
from msvit.policies import Budget
from msvit_kernels import testing

PATCH, COARSE = 16, 32
MODES = ("masked", "trimmed", "packed")
# Image size in pixels, and the most tokens for which it is used: all fine.
IMAGE_SIZES = {224: 196, 384: 576}
# Every size, budget and batch compiles the same few lines of Python again, which torch by default does eight times.
torch._dynamo.config.recompile_limit = 256
CHECKED = 4  # images of a batch whose logits are held against fp64
_TIMM_NAME = "vit_small_patch16_224"


@dataclass(frozen=True)
class Method:
    """Something to time: one model on images of one size.

    Attributes:
        name: "dense" or a token mode, with " compiled" and " graph" behind it where that is what runs.
        wanted: tokens asked for. tokens: patch tokens per image, on average.
        image_size: pixels. gmacs: per image, of active tokens only, on average over the images of a batch.
        call: takes uint8 images of that size.
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
        images: uint8 [n, 3, size, size] of a given size.
        device, dtype: of the weights.
        stopwatch: gets `first_block` before the first block of a model and `last_block` after its last.
    """

    def __init__(
        self, images: Callable[[int], Tensor], device: torch.device, dtype: torch.dtype, stopwatch: "Stopwatch"
    ) -> None:
        self.images, self.device, self.dtype, self.stopwatch = images, device, dtype, stopwatch
        self.base = timm.create_model(_TIMM_NAME).to(device, dtype).eval()
        self._dense: dict[int, nn.Module] = {}
        self._mixed: dict[int, msvit.MixedScaleVisionTransformer] = {}

    def dense(self, tokens: int) -> Method:
        """The plain model at the square number nearest to `tokens`."""
        side = max(1, round(tokens**0.5))
        size = side * PATCH
        if size not in self._dense:
            self._dense[size] = self._watch(self._plain(size))
        model = self._dense[size]
        return Method("dense", tokens, side**2, size, msvit.macs(model, side**2) / 1e9, self._dense_call(model))

    def compiled(self, method: Method, batch: int) -> Method:
        """The dense or the packed model through torch.compile, static shapes, compiled and checked for a batch size.

        Raises:
            common.RefusalError: its logits differ from those of the same model uncompiled by more than rounding does.
            Exception: whatever the compiler raises; what breaks the graph of the packed model is an error too.
        """
        make = {"dense": self._compiled_dense, "packed": self._compiled_packed}[method.name]
        return replace(
            method, name=f"{method.name} compiled", call=make(method, self.images(method.image_size)[:batch])
        )

    def _compiled_dense(self, method: Method, images: Tensor) -> Callable[[Tensor], Tensor]:
        model = self._plain(method.image_size)  # without the hooks, which would be compiled as well
        call = self._dense_call(model)
        compiled = torch.compile(call, dynamic=False, fullgraph=True)
        logits, few = compiled(images), images[:CHECKED]
        oracle = self._dense_call(copy.deepcopy(model).double(), torch.float64)(few.double())
        _require_same(f"compiled ViT-S at {method.image_size} px", logits[:CHECKED], call(few), oracle)
        return compiled

    def _compiled_packed(self, method: Method, images: Tensor) -> Callable[[Tensor], Tensor]:
        # One model for each budget, or what is compiled for one would be compiled again for the next.
        model = self._bare_mixed(method.image_size)
        model.token_mode, model.policy = "packed", Budget(method.wanted)

        def with_mask(images: Tensor) -> tuple[Tensor, Tensor]:
            decision = model.decide(images)
            return model.classify(images, decision), decision.fine_mask

        compiled = torch.compile(with_mask, dynamic=False, fullgraph=True)
        (logits, mask), few = compiled(images), images[:CHECKED]
        name = f"compiled packed MSViT-S with {method.wanted} tokens"
        # Of regions with nearly the same entropy rounding may choose another one: the scores are compared, and then
        # the logits for the regions that were chosen.
        scores, wanted = model.gate(images).double(), model.decide(images).fine_mask
        gap = ((scores * wanted).sum() - (scores * mask).sum()).abs().item()
        if int(mask.sum()) != int(wanted.sum()) or gap > 1e-5 * wanted.numel():
            raise common.RefusalError(f"{name} is not timed: its regions score {gap:.3g} bits other than uncompiled")
        eager = self._logits(model, "packed", few, mask[:CHECKED])
        oracle = self._logits(copy.deepcopy(model).double(), "masked", few, mask[:CHECKED])
        _require_same(name, logits[:CHECKED], eager, oracle)
        return lambda images: compiled(images)[0]

    def _dense_call(self, model: nn.Module, dtype: torch.dtype | None = None) -> Callable[[Tensor], Tensor]:
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
            self._mixed[size] = self._watch(self._bare_mixed(size))
        return self._mixed[size]

    def _bare_mixed(self, size: int) -> msvit.MixedScaleVisionTransformer:
        return msvit.from_timm(self._plain(size), COARSE, gate="entropy").to(self.device).eval()

    def check(self, size: int) -> None:
        """Refuses where packed, trimmed and masked logits differ by more than rounding does, on two images.

        Half of the regions are fine.

        Raises:
            common.RefusalError: with the error and its bound.
        """
        model = self.mixed_model(size)
        tokens = int(model.scales.mean_patches(0.5))
        images, mask = self.images(size)[:2], self.fine_mask(size, tokens, 2)
        logits = {mode: self._logits(model, mode, images, mask) for mode in MODES}
        oracle = self._logits(copy.deepcopy(model).double(), "masked", images, mask)
        for mode in ("packed", "trimmed"):
            _require_same(f"{mode} MSViT-S at {size} px", logits[mode], logits["masked"], oracle, "masked")

    @staticmethod
    @torch.inference_mode()
    def _logits(model: msvit.MixedScaleVisionTransformer, mode: str, images: Tensor, mask: Tensor) -> Tensor:
        model.token_mode = mode
        logits: Tensor = model(images, fine_mask=mask)
        return logits

    @staticmethod
    def _call_mixed(model: msvit.MixedScaleVisionTransformer, mode: str, policy: Budget, images: Tensor) -> Tensor:
        model.token_mode, model.policy = mode, policy
        logits: Tensor = model(images)
        return logits

    def _plain(self, size: int) -> nn.Module:
        """A model for images of `size` pixels that shares all weights but the position encodings."""
        with torch.device("meta"):
            model = timm.create_model(_TIMM_NAME, img_size=size)
        state = self.base.state_dict()
        shape = model.pos_embed.shape
        state["pos_embed"] = torch.randn(shape, device=self.device).mul_(0.02).to(self.dtype)
        model.load_state_dict(state, assign=True)
        return model.eval()

    def _watch(self, model: Any) -> Any:
        model.blocks[0].register_forward_pre_hook(lambda *_: self.stopwatch.mark("first_block"))
        model.blocks[-1].register_forward_hook(lambda *_: self.stopwatch.mark("last_block"))
        return model


def _require_same(what: str, logits: Tensor, eager: Tensor, oracle: Tensor, other: str = "uncompiled") -> None:
    try:
        testing.assert_accurate("logits", logits, eager, oracle)
    except AssertionError as error:
        raise common.RefusalError(f"{what} differs from {other}, so it is not timed: {error}") from error


class Stopwatch:
    """Takes the time of a whole call and, from marks that hooks set, of its transformer blocks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.moments: dict[str, Any] = {}
        self.paused = False  # while a graph is captured, which would contain the events

    def mark(self, name: str) -> None:
        """Remembers now, on a GPU as an event of the stream."""
        if self.paused:
            return
        if self.device.type == "cuda":
            self.moments[name] = torch.cuda.Event(enable_timing=True)
            self.moments[name].record()
        else:
            self.moments[name] = time.perf_counter()

    @torch.inference_mode()
    def time(self, call: Callable[[Tensor], Any], images: Tensor) -> tuple[float | None, float]:
        """Seconds of the blocks, None where no hook ran (a compiled model, a graph), and of the whole call."""
        self.moments.clear()
        self.mark("start")
        call(images)
        self.mark("end")
        if self.device.type == "cuda":
            self.moments["end"].synchronize()
        blocks = self._between("first_block", "last_block") if "last_block" in self.moments else None
        return blocks, self._between("start", "end")

    def _between(self, start: str, end: str) -> float:
        if self.device.type == "cuda":
            return float(self.moments[start].elapsed_time(self.moments[end])) / 1e3
        return float(self.moments[end] - self.moments[start])


def image_size(tokens: int) -> int:
    """Pixels of the images of which MSViT-S makes that many tokens.

    Raises:
        ValueError: more tokens than all fine, or fewer than all coarse.
    """
    for size, most in IMAGE_SIZES.items():
        fewest = (size // COARSE) ** 2
        if tokens <= most:
            if tokens < fewest:
                raise ValueError(f"{tokens} tokens: MSViT-S has at least {fewest} at {size} px, all coarse")
            return size
    raise ValueError(f"{tokens} tokens: MSViT-S has at most {max(IMAGE_SIZES.values())} at {max(IMAGE_SIZES)} px")


def parse_tokens(text: str) -> list[int]:
    """Numbers of tokens: "196", "64,100,196", or "64..576" for the squares of the even numbers in that range.

    Even, because regions of two patches must divide the image.

    Raises:
        ValueError: anything else.
    """
    tokens: set[int] = set()
    for part in text.split(","):
        first, dots, last = part.partition("..")
        try:
            start, end = int(first), int(last) if dots else int(first)
        except ValueError:
            raise ValueError(
                f"--tokens: expected numbers such as 196, 64,100,196 or a range such as 64..576, got {text!r}"
            ) from None
        if start < 1 or end < start:
            raise ValueError(f"--tokens: expected numbers from 1 upwards, ranges with the smaller first, got {text!r}")
        squares = [side**2 for side in range(2, int(end**0.5) + 1, 2) if side**2 >= start]
        if dots and not squares:
            raise ValueError(f"--tokens: {part} contains no square of an even number")
        tokens.update(squares if dots else [start])
    return sorted(tokens)


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 images scaled to `size` pixels."""
    # On a GPU torch cannot resize integers.
    scaled = F.interpolate(images.cpu(), (size, size), mode="bilinear", antialias=True)
    return scaled.to(images.device)


def methods_for(zoo: Zoo, tokens: Sequence[int], batch: int) -> tuple[list[list[Method]], list[str]]:
    """What to time at a batch size: for each number of tokens dense, then the three modes; and what cannot be.

    The dense model at 196 and 576 tokens, which speed-ups refer to, is always among them.
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
