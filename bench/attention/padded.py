"""torch.nn.functional.scaled_dot_product_attention on padded, split and nested sequences."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nested import nested_tensor_from_jagged
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.attention.prepared import Prepared
from bench.attention.workloads import Buffers, rows_of_full_sequences
from bench.passes import backward_alone


def _padded(x: Buffers, backend: SDPBackend | None, masked: bool) -> Prepared:
    q, k, v = leaves = x.padded_leaves()
    full = bool(x.present.all())
    mask = None
    if masked and not full:
        # Added to the scores: a boolean mask would be converted to this form at every call.
        mask = torch.zeros_like(x.present, dtype=x.dtype).masked_fill(~x.present, -torch.inf)[:, None, None, :]
    dout = x.pad(x.dout).transpose(1, 2)
    if backend and x.device.type == "cpu":
        backend = SDPBackend.MATH

    def forward() -> Tensor:
        with sdpa_kernel(backend) if backend else nullcontext():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    rows = None if masked or full else rows_of_full_sequences(x.workload.lengths).to(x.device)
    return Prepared(forward, backward_alone(forward, leaves, dout), x.unpad, rows)


def any_kernel(x: Buffers) -> Prepared:
    """One padded call with a key mask; torch chooses the kernel."""
    return _padded(x, None, masked=True)


def flash(x: Buffers) -> Prepared:
    """One padded call without a mask, by flash."""
    return _padded(x, SDPBackend.FLASH_ATTENTION, masked=False)


def efficient(x: Buffers) -> Prepared:
    """One padded call with a key mask, by the memory-efficient kernel."""
    return _padded(x, SDPBackend.EFFICIENT_ATTENTION, masked=True)


def cudnn(x: Buffers) -> Prepared:
    """One padded call with a key mask, by cuDNN."""
    return _padded(x, SDPBackend.CUDNN_ATTENTION, masked=True)


def loop(x: Buffers) -> Prepared:
    """One call for each sequence; the results are concatenated."""

    def attend(qkv: Sequence[Tensor]) -> Tensor:
        # [n, heads, head_dim] -> [1, heads, n, head_dim]
        q, k, v = (each.transpose(0, 1)[None] for each in qkv)
        return F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)

    def forward() -> Tensor:
        sequences = zip(*(leaf.split(x.workload.lengths) for leaf in x.leaves), strict=True)
        return torch.cat([attend(qkv) for qkv in sequences])

    return Prepared(forward, backward_alone(forward, x.leaves, x.dout))


def nested(x: Buffers) -> Prepared:
    """Nested tensors of layout jagged, from contiguous q, k, v, with both bounds of the lengths."""
    offsets = x.offsets.long()  # jagged tensors want int64
    shortest, longest = min(x.workload.lengths), x.workload.longest
    # Not cuDNN, which may build a plan at every call.
    backend = SDPBackend.FLASH_ATTENTION if x.device.type == "cuda" else SDPBackend.MATH
    leaves = [leaf.detach().contiguous().requires_grad_() for leaf in x.leaves]

    def forward() -> Tensor:
        # values [total, heads, head_dim] -> [batch, heads, any, head_dim]
        q, k, v = (
            nested_tensor_from_jagged(leaf, offsets, min_seqlen=shortest, max_seqlen=longest).transpose(1, 2)
            for leaf in leaves
        )
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values()

    return Prepared(forward, backward_alone(forward, leaves, x.dout))
