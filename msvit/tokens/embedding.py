"""Mixed-scale tokens of a batch of images, packed, masked or trimmed.

The candidates of an image are its prefix tokens, then Nc coarse and Nf fine patches, each in raster order. Coarse
patches and their position encodings are area averages over s x s blocks of the fine ones (eq. 5 of the MSViT paper).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msvit.tokens.decision import Decision
from msvit.tokens.sequences import PackedSequences, PaddedSequences, softmax_dtype
from msvit_kernels import Scales, mixed_scale_embed


@dataclass(frozen=True)
class Embedding:
    """The parameters that turn pixels into tokens.

    Attributes:
        weight, bias: [dim, 3, p, p], and [dim] or None, of the patch projection.
        table: [num_prefix + Nc + Nf, dim], see `position_table`.
        mean, std: three floats each if the images are not normalised yet, else None.
    """

    weight: Tensor
    bias: Tensor | None
    table: Tensor
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @property
    def patch_size(self) -> int:
        return self.weight.shape[-1]


def in_candidate_order(prefix: Tensor, coarse: Tensor, fine: Tensor, axis: int) -> Tensor:
    """Concatenates the values of all candidates; this function alone sets the order of coarse and fine ones.

    Args:
        prefix: [..., num_prefix, ...], prefix tokens on axis `axis`.
        coarse: [..., Hc, Wc, ...], coarse grid on axes `axis` and `axis + 1`.
        fine: [..., Hf, Wf, ...], fine grid on the same two axes.
        axis: index of the candidate axis in the result.

    Returns:
        [..., num_prefix + Nc + Nf, ...].
    """
    return torch.cat([prefix, coarse.flatten(axis, axis + 1), fine.flatten(axis, axis + 1)], axis)


def position_table(prefix: Tensor, grid: Tensor, scale_factor: int) -> Tensor:
    """Computes the vectors that are added to the patch projections of the candidates.

    Args:
        prefix: [num_prefix, dim], prefix tokens with their position encodings.
        grid: [Hf, Wf, dim], position encodings of the fine grid.
        scale_factor: s, which divides Hf and Wf.

    Returns:
        [num_prefix + Nc + Nf, dim], differentiable in `prefix` and `grid`.
    """
    blocks = grid.unflatten(1, (-1, scale_factor)).unflatten(0, (-1, scale_factor))  # [Hc, s, Wc, s, dim]
    return in_candidate_order(prefix, blocks.mean(dim=(1, 3)), grid, 0)


def embed_packed(images: Tensor, decision: Decision, embedding: Embedding) -> tuple[Tensor, PackedSequences]:
    """Embeds the active tokens only.

    Args:
        images: [batch, 3, H, W], floats, or uint8 if the embedding has mean and std.
        decision: fine regions of each image.
        embedding: parameters of the embedding.

    Returns:
        Tokens [total_tokens, dim] and their sequences.
    """
    layout = decision.layout()
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
        weight = candidate_weight(decision.fine_weight, decision.scales)
        key_weight = weight[layout.batch_index, layout.token_index].to(softmax_dtype(tokens))
    return tokens, PackedSequences(layout, key_weight)


def embed_masked(images: Tensor, decision: Decision, embedding: Embedding) -> tuple[Tensor, PaddedSequences]:
    """Embeds all candidates of every image (eq. 10, appendix F.1).

    The arguments are those of `embed_packed`.

    Returns:
        Tokens [batch * num_candidates, dim] and their sequences.
    """
    scales = decision.scales
    tokens = _embed_candidates(images, embedding, scales)
    active = candidate_weight(decision.fine_mask.to(tokens.dtype), scales) > 0
    key_weight = None
    if decision.fine_weight is not None:
        key_weight = candidate_weight(decision.fine_weight, scales).to(softmax_dtype(tokens))
    return tokens.flatten(0, 1), PaddedSequences(active, key_weight, None, scales.num_prefix)


def embed_trimmed(images: Tensor, decision: Decision, embedding: Embedding) -> tuple[Tensor, PaddedSequences]:
    """Embeds k tokens of every image; k is the largest number of active tokens of an image (section 2.3).

    A stable sort puts the active candidates of an image first. Prefix tokens are always active, so they stay in front.

    The arguments are those of `embed_packed`.

    Returns:
        Tokens [batch * k, dim] and their sequences.
    """
    tokens, masked = embed_masked(images, decision, embedding)
    order = masked.active.byte().argsort(dim=1, descending=True, stable=True)  # [batch, num_candidates]
    longest = int(masked.active.sum(1).max()) if len(images) else masked.length
    kept = order[:, :longest]
    tokens = tokens.view(*order.shape, tokens.shape[1]).gather(1, kept[..., None].expand(-1, -1, tokens.shape[1]))
    key_weight = None if masked.key_weight is None else masked.key_weight.gather(1, kept)
    trimmed = PaddedSequences(masked.active.gather(1, kept), key_weight, order.argsort(dim=1), masked.num_prefix)
    return tokens.flatten(0, 1), trimmed


def candidate_weight(fine_weight: Tensor, scales: Scales) -> Tensor:
    """Activity of every candidate: w for fine tokens, 1 - w for coarse ones (eq. 3), 1 for prefix tokens.

    Args:
        fine_weight: floats [batch, Hc, Wc] in [0, 1].
        scales: the candidate tokens of an image.

    Returns:
        [batch, num_prefix + Nc + Nf], in the dtype of `fine_weight`.
    """
    prefix = fine_weight.new_ones(fine_weight.shape[0], scales.num_prefix)
    fine = fine_weight.repeat_interleave(scales.scale_factor, 1).repeat_interleave(scales.scale_factor, 2)
    return in_candidate_order(prefix, 1 - fine_weight, fine, 1)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`(x/255 - mean) / std` for uint8 images, in the dtype of mean and std, which are [3, 1, 1]."""
    return (images.to(mean.dtype) / 255 - mean) / std


def _embed_candidates(images: Tensor, embedding: Embedding, scales: Scales) -> Tensor:
    """Embeds all candidates by two convolutions; returns [batch, num_candidates, dim]."""
    weight, bias, p = embedding.weight, embedding.bias, embedding.patch_size
    if embedding.mean is not None and embedding.std is not None:
        mean, std = (weight.new_tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (embedding.mean, embedding.std))
        images = normalise(images, mean, std)
    images = images.to(weight.dtype)
    coarse = F.conv2d(F.avg_pool2d(images, scales.scale_factor), weight, bias, stride=p)
    fine = F.conv2d(images, weight, bias, stride=p)
    # Prefix tokens have no pixels; the table holds their whole value.
    prefix = weight.new_zeros(images.shape[0], scales.num_prefix, weight.shape[0])
    patches = in_candidate_order(prefix, coarse.permute(0, 2, 3, 1), fine.permute(0, 2, 3, 1), 1)
    return patches + embedding.table
