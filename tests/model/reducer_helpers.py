"""Reducers of two kinds, a callable and a module with parameters, and small models that have them."""

from typing import Any

import torch
from torch import Tensor, nn

import msvit
from msvit.models.vit import MixedScaleVisionTransformer
from msvit.reducers import AttentionTerms, Sequences
from tests.model.model_helpers import small_vit


def patch_ranks(tokens: Tensor, sequences: Sequences) -> Tensor:
    """int64 [rows]: rank of each patch token in its image by its first feature, from 0; -1 for other rows."""
    patches = sequences.is_active() & ~sequences.is_prefix()
    image, score = sequences.batch_index, tokens[:, 0].detach()
    beaten_by = (image[:, None] == image) & patches & (score[:, None] < score)
    return beaten_by.sum(1).masked_fill(~patches, -1)


class EverySecond:
    """Keeps the patch tokens of even rank."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __call__(
        self, tokens: Tensor, sequences: Sequences, attention: AttentionTerms | None
    ) -> tuple[Tensor, Sequences]:
        assert (attention is None) == (self.place == "before_block")
        return sequences.keep(tokens, patch_ranks(tokens, sequences) % 2 == 0)

    def by_hand(self, x: Tensor, num_prefix: int) -> Tensor:
        """The same for the tokens of one image; the remaining tokens are in any order."""
        patches = x[num_prefix:]
        return torch.cat([x[:num_prefix], patches[patches[:, 0].argsort(descending=True)][::2]])


class Best(nn.Module):
    """Keeps the `count` patch tokens of each image with the highest learned score, times its sigmoid."""

    place = "after_attention"

    def __init__(self, count: int = 1, dim: int = 32) -> None:
        super().__init__()
        self.count = count
        self.score = nn.Linear(dim, 1)

    def forward(
        self, tokens: Tensor, sequences: Sequences, attention: AttentionTerms | None
    ) -> tuple[Tensor, Sequences]:
        score = self.score(tokens)
        ranks = patch_ranks(score, sequences)
        total = sequences.batch * (sequences.num_prefix + self.count)
        return sequences.keep(tokens * score.sigmoid(), (ranks >= 0) & (ranks < self.count), total)


def make_model(reducers: dict[int, Any], gate: str = "entropy", **kwargs: Any) -> MixedScaleVisionTransformer:
    model = msvit.from_timm(small_vit(**kwargs), 16, gate=gate).double().eval()
    model.reducers = reducers
    return model


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
