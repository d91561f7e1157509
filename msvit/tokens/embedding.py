"""Mixed-scale tokens of a batch of images, packed, masked or trimmed.

Candidates of an image are its prefix tokens, then Nc coarse, then Nf fine patches, in raster order. Coarse patches and
their position encodings are area averages over s x s blocks of the fine ones (eq. 5 of the MSViT paper).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msvit.tokens.sequences import PackedSequences, PaddedSequences, softmax_dtype
from msvit_kernels import mixed_scale_embed, mixed_scale_layout


@dataclass(frozen=True)
class Embedding:
    """What turns pixels into tokens.

    Attributes:
        weight: [dim, 3, p, p], bias: [dim] or None, of the patch projection.
        table: [num_prefix + Nc + Nf, dim], see `position_table`.
        scale_factor: s. num_prefix: prefix tokens.
        mean, std: three floats each where the images still have to be normalised, else None.
    """

    weight: Tensor
    bias: Tensor | None
    table: Tensor
    scale_factor: int
    num_prefix: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @property
    def patch_size(self) -> int:
        return self.weight.shape[-1]


@dataclass(frozen=True)
class Decision:
    """Which regions are fine.

    Attributes:
        fine_mask: bool [batch, Hc, Wc].
        num_fine: fine regions of the batch where the host knows them, else None.
        fine_weight: [batch, Hc, Wc], `fine_mask` as 0 or 1 with the straight-through gradient of the gate (eq. 2);
            None where no gate gradient is asked for.
    """

    fine_mask: Tensor
    num_fine: int | None = None
    fine_weight: Tensor | None = None


def position_table(prefix: Tensor, grid: Tensor, scale_factor: int) -> Tensor:
    """What every candidate gets added to its patch projection.

    Args:
        prefix: [num_prefix, dim], prefix tokens with their position encodings.
        grid: [Hf, Wf, dim], position encodings of the fine grid.
        scale_factor: s, which divides Hf and Wf.

    Returns:
        [num_prefix + Nc + Nf, dim], differentiable in both.
    """
    height, width, dim = grid.shape
    s = scale_factor
    coarse = grid.view(height // s, s, width // s, s, dim).mean(dim=(1, 3))
    return torch.cat([prefix, coarse.flatten(0, 1), grid.flatten(0, 1)])


def embed_packed(images: Tensor, decision: Decision, embedding: Embedding) -> tuple[Tensor, PackedSequences]:
    """Active tokens only: [total_tokens, dim]."""
    batch, num_regions = images.shape[0], decision.fine_mask[0].numel() if images.shape[0] else 0
    total_tokens = None
    if decision.num_fine is not None:
        tokens_won = decision.num_fine * (embedding.scale_factor**2 - 1)
        total_tokens = batch * (embedding.num_prefix + num_regions) + tokens_won
    layout = mixed_scale_layout(
        decision.fine_mask,
        scale_factor=embedding.scale_factor,
        num_prefix=embedding.num_prefix,
        total_tokens=total_tokens,
    )
    tokens = mixed_scale_embed(
        images,
        layout,
        embedding.weight,
        embedding.bias,
        embedding.table,
        patch_size=embedding.patch_size,
        mean=embedding.mean,
        std=embedding.std,
    )
    key_weight = None
    if decision.fine_weight is not None:
        weight = candidate_weight(decision.fine_weight, embedding)
        key_weight = weight[layout.batch_index, layout.token_index].to(softmax_dtype(tokens))
    return tokens, PackedSequences(layout, key_weight)


def embed_masked(images: Tensor, decision: Decision, embedding: Embedding) -> tuple[Tensor, PaddedSequences]:
    """All candidates of every image: [batch * num_candidates, dim] (eq. 10, appendix F.1)."""
    tokens = _embed_candidates(images, embedding)
    active = candidate_weight(decision.fine_mask.to(tokens.dtype), embedding) > 0
    key_weight = None
    if decision.fine_weight is not None:
        key_weight = candidate_weight(decision.fine_weight, embedding).to(softmax_dtype(tokens))
    return tokens.flatten(0, 1), PaddedSequences(active, key_weight, None, embedding.num_prefix)


def embed_trimmed(images: Tensor, decision: Decision, embedding: Embedding) -> tuple[Tensor, PaddedSequences]:
    """As many tokens of every image as the fullest one has, k: [batch * k, dim] (section 2.3).

    Candidates are sorted by activity, descending; among equals the order of the candidates stays. Prefix tokens are
    always active and so stay in front.
    """
    tokens, masked = embed_masked(images, decision, embedding)
    order = masked.active.byte().argsort(dim=1, descending=True, stable=True)  # [batch, num_candidates]
    longest = int(masked.active.sum(1).max()) if len(images) else masked.length
    kept = order[:, :longest]
    tokens = tokens.view(*order.shape, tokens.shape[1]).gather(1, kept[..., None].expand(-1, -1, tokens.shape[1]))
    key_weight = None if masked.key_weight is None else masked.key_weight.gather(1, kept)
    trimmed = PaddedSequences(masked.active.gather(1, kept), key_weight, order.argsort(dim=1), masked.num_prefix)
    return tokens.flatten(0, 1), trimmed


def candidate_weight(fine_weight: Tensor, embedding: Embedding) -> Tensor:
    """Activity of every candidate: w for fine tokens, 1 - w for coarse ones (eq. 3), 1 for prefix tokens.

    Args:
        fine_weight: [batch, Hc, Wc] in [0, 1].
        embedding: has the scale factor and the number of prefix tokens.

    Returns:
        [batch, num_prefix + Nc + Nf], same dtype.
    """
    s = embedding.scale_factor
    prefix = fine_weight.new_ones(fine_weight.shape[0], embedding.num_prefix)
    fine = fine_weight.repeat_interleave(s, 1).repeat_interleave(s, 2)
    return torch.cat([prefix, 1 - fine_weight.flatten(1), fine.flatten(1)], dim=1)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`(x/255 - mean) / std` for uint8 images; mean, std: [3, 1, 1]."""
    return (images.to(mean.dtype) / 255 - mean) / std


def _embed_candidates(images: Tensor, embedding: Embedding) -> Tensor:
    """[batch, num_candidates, dim], by two convolutions."""
    weight, bias, p = embedding.weight, embedding.bias, embedding.patch_size
    if embedding.mean is not None and embedding.std is not None:
        mean, std = (weight.new_tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (embedding.mean, embedding.std))
        images = normalise(images, mean, std)
    images = images.to(weight.dtype)
    coarse = F.conv2d(F.avg_pool2d(images, embedding.scale_factor), weight, bias, stride=p)
    fine = F.conv2d(images, weight, bias, stride=p)
    patches = torch.cat([coarse.flatten(2), fine.flatten(2)], dim=2).mT  # [batch, Nc + Nf, dim]
    prefix, positions = embedding.table.split([embedding.num_prefix, patches.shape[1]])
    return torch.cat([prefix.expand(images.shape[0], -1, -1), patches + positions], dim=1)
