"""The arguments of the operators, each list written once.

An operator's record holds its arguments after validation. Schema, fake implementation and autograd (`ops/`) are made
from its fields and speak of them by name; the raw functions of every backend take it. A record may hold another one,
whose fields then stand in its place in the schema. A field with a default is an option: a backend runs calls that give
it another value if the backend's module names it in OPTIONS; otherwise it refuses them.

Dtypes, shapes and meaning are those of the public functions.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

from torch import Tensor

from msvit_kernels.scales import Scales

# A number that torch.compile may not know while it traces. A plain int costs the dispatcher less.
SymInt = Annotated[int, "SymInt"]


class VarlenAttention(NamedTuple):
    """Attention from the rows of each query sequence to those of its key sequence."""

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
    """Gradients of `dout . out + dlse . lse`."""

    call: VarlenAttention
    out: Tensor
    lse: Tensor
    dout: Tensor
    dlse: Tensor | None
    needs_dweight: bool


class VarlenAttentionGradients(NamedTuple):
    """The gradient of each argument that has one; None if it was not asked for."""

    q: Tensor
    k: Tensor
    v: Tensor
    key_weight: Tensor | None = None


class Regions(NamedTuple):
    """Which packed rows belong to which region."""

    fine_mask: Tensor
    region_start: Tensor
    scale_factor: int

    def scales(self, num_prefix: int) -> Scales:
        """The candidates of each image."""
        return Scales((self.fine_mask.shape[1], self.fine_mask.shape[2]), self.scale_factor, num_prefix)


class MixedScaleLayoutOffsets(NamedTuple):
    """First half of a layout: how many tokens each image has."""

    fine_mask: Tensor
    scale_factor: int
    num_prefix: int


class MixedScaleLayoutIndices(NamedTuple):
    """Second half of a layout: which token each row is."""

    regions: Regions
    cu_seqlens: Tensor
    total_tokens: SymInt
    num_prefix: int


class Patches(NamedTuple):
    """What each packed row shows, and the weight it is multiplied with."""

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
    """Gradients of `dout . out`, of which some may not be needed."""

    patches: Patches
    dout: Tensor
    needs_images: bool
    needs_weight: bool
    needs_bias: bool
    needs_table: bool


class MixedScaleEmbedGradients(NamedTuple):
    """The gradient of each argument that has one; None if it was not asked for."""

    images: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    table: Tensor | None = None


class UnpackToGrid(NamedTuple):
    """Packed tokens to the fine grid."""

    tokens: Tensor
    regions: Regions


class UnpackToGridBackward(NamedTuple):
    """Gradient of `dgrid . grid` for the tokens."""

    dgrid: Tensor
    regions: Regions
    total_tokens: SymInt


class UnpackToGridGradients(NamedTuple):
    """The gradient of the one argument that has one."""

    tokens: Tensor
