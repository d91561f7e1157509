"""The records that carry an operator's arguments to its backends.

A record holds the arguments of one operator after validation. The schema, the fake implementation and the backward
formula (`ops/`) are made from its fields; the raw functions of every backend take the record itself. If a field is a
record too, the schema lists the inner fields in its place. A field with a default is an option: a backend runs calls
that set it only if the backend's module names it in OPTIONS, and refuses them otherwise.

Arguments of a public function keep its names, shapes, dtypes and meanings; other fields are described here.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

from torch import Tensor

from msvit_kernels.scales import Scales

# An int that may be symbolic while torch.compile traces. A plain int takes the dispatcher less time.
SymInt = Annotated[int, "SymInt"]
HEAD_DIMS = range(16, 129, 8)  # of `varlen_attention`, in every backend


def head_dim_fault(head_dim: int) -> str | None:
    """The head_dim that attention takes instead of this one, for an error message; None if it takes this one."""
    if head_dim in HEAD_DIMS:
        return None
    return f"a head_dim that is a multiple of {HEAD_DIMS.step} from {HEAD_DIMS[0]} to {HEAD_DIMS[-1]}, got {head_dim}"


class VarlenAttention(NamedTuple):
    """Attention of each query sequence over its key sequence.

    Attributes:
        cu_seqlens_q: int32 [batch + 1], `cu_seqlens` of the public function.
        cu_seqlens_k: int32 [batch + 1], the same tensor if the public function got none for the keys.
        max_seqlen_q: upper bound of the tokens of a query sequence.
        max_seqlen_k: upper bound of the tokens of a key sequence.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    softmax_scale: float
    key_weight: Tensor | None = None


class VarlenAttentionBackward(NamedTuple):
    """Gradients of sum(dout * out) + sum(dlse * lse).

    Attributes:
        call: arguments of the forward.
        out: [total_q, num_heads, head_dim], dtype of q, output of the forward.
        lse: float32 [num_heads, total_q] (float64 for float64 inputs), output of the forward.
        dout: [total_q, num_heads, head_dim], dtype of q, any strides.
        dlse: as `lse`, any strides; None for zeros.
        needs_dweight: whether the gradient of `key_weight` is wanted.
    """

    call: VarlenAttention
    out: Tensor
    lse: Tensor
    dout: Tensor
    dlse: Tensor | None
    needs_dweight: bool


class VarlenAttentionGradients(NamedTuple):
    """One gradient per differentiable argument, in its shape and dtype, contiguous; None if it is not wanted."""

    q: Tensor
    k: Tensor
    v: Tensor
    key_weight: Tensor | None = None


class Regions(NamedTuple):
    """The packed rows of each region.

    Attributes:
        fine_mask: bool [batch, Hc, Wc], True for a fine region.
        region_start: int32 [batch, Hc * Wc], first packed row of each region.
        scale_factor: s, fine tokens along one side of a region.
    """

    fine_mask: Tensor
    region_start: Tensor
    scale_factor: int

    def scales(self, num_prefix: int) -> Scales:
        """Counts of the candidates of an image with `num_prefix` prefix tokens."""
        return Scales((self.fine_mask.shape[1], self.fine_mask.shape[2]), self.scale_factor, num_prefix)


class MixedScaleLayoutOffsets(NamedTuple):
    """First half of a layout: the number of tokens of each image."""

    fine_mask: Tensor
    scale_factor: int
    num_prefix: int


class MixedScaleLayoutIndices(NamedTuple):
    """Second half of a layout: image and candidate of each packed row.

    Attributes:
        cu_seqlens: int32 [batch + 1], first packed row of each image, then the total.
        total_tokens: number of packed rows.
    """

    regions: Regions
    cu_seqlens: Tensor
    total_tokens: SymInt
    num_prefix: int


class Patches(NamedTuple):
    """The patches of the packed rows and the weight that multiplies them.

    Attributes:
        cu_seqlens: int32 [batch + 1], first packed row of each image, then the total.
        batch_index: int32 [total_tokens], image of each row.
        token_index: int32 [total_tokens], candidate of each row: prefix, then coarse, then fine tokens.
    """

    images: Tensor
    regions: Regions
    cu_seqlens: Tensor
    batch_index: Tensor
    token_index: Tensor
    num_prefix: int
    weight: Tensor
    patch_size: int
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


class MixedScaleEmbed(NamedTuple):
    """Embedding of the active tokens."""

    patches: Patches
    table: Tensor
    bias: Tensor | None = None


class MixedScaleEmbedBackward(NamedTuple):
    """Gradients of sum(dout * out).

    Attributes:
        patches: arguments of the forward.
        dout: [total_tokens, dim], dtype of `weight`, contiguous.
        needs_images: whether the gradient of `images` is wanted; the other flags correspond.
    """

    patches: Patches
    dout: Tensor
    needs_images: bool
    needs_weight: bool
    needs_bias: bool
    needs_table: bool


class MixedScaleEmbedGradients(NamedTuple):
    """One gradient per differentiable argument, in its shape and dtype, contiguous; None if it is not wanted."""

    images: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    table: Tensor | None = None


class UnpackToGrid(NamedTuple):
    """Copy of packed tokens to the fine grid."""

    tokens: Tensor
    regions: Regions


class UnpackToGridBackward(NamedTuple):
    """Gradient of sum(dgrid * grid) with respect to the tokens.

    Attributes:
        dgrid: [batch, dim, Hf, Wf], contiguous.
        total_tokens: number of packed rows.
    """

    dgrid: Tensor
    regions: Regions
    total_tokens: SymInt
