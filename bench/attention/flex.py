"""FlexAttention with a document mask, which is built once and not timed."""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bench.attention.prepared import Prepared
from bench.attention.workloads import Buffers
from bench.passes import backward_alone

_masks: dict[tuple[int, ...], Any] = {}


def document(x: Buffers) -> Prepared:
    """flex_attention with a document mask; compiled on a GPU."""
    from torch.nn.attention.flex_attention import flex_attention

    lengths = x.workload.lengths
    if lengths not in _masks:
        _masks.clear()  # they are large
        _masks[lengths] = document_mask(x)
    mask = _masks[lengths]
    attend: Any = _compiled_flex() if x.device.type == "cuda" else flex_attention

    def forward() -> Tensor:
        # [total, heads, head_dim] -> [1, heads, total, head_dim]
        q, k, v = (leaf.transpose(0, 1)[None] for leaf in x.leaves)
        out: Tensor = attend(q, k, v, block_mask=mask)[0]
        return out.transpose(0, 1)

    return Prepared(forward, backward_alone(forward, x.leaves, x.dout))


def document_mask(x: Buffers) -> Any:
    """Block mask in which a query attends to the keys of its own sequence."""
    from torch.nn.attention.flex_attention import create_block_mask

    document, total = x.document, x.workload.total
    return create_block_mask(
        lambda b, h, q, k: document[q] == document[k], None, None, total, total, device=x.device.type
    )


def mask_build_seconds(x: Buffers) -> float:
    """Seconds to build the document mask, which the times of flex_attention do not include."""
    document_mask(x)
    _synchronize(x.device)
    start = time.perf_counter()
    document_mask(x)
    _synchronize(x.device)
    return time.perf_counter() - start


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
