"""What else computes attention over sequences of different lengths, each ready to be called on one set of buffers.

    sdpa padded flash        F.scaled_dot_product_attention on [batch, heads, longest, head_dim]. Flash takes no key
                             mask: padded keys are attended to, so that short sequences get a wrong result
    sdpa padded efficient    the same with a key mask, without it where all lengths are equal
    sdpa padded cudnn        likewise
    varlen_attn flash        torch.nn.attention.varlen, kept from cuDNN
    varlen_attn cudnn        likewise, where it takes cuDNN by itself: torch 2.14 on sm90 and sm100
    flex_attention           compiled, document mask made once and outside of the time
    sdpa nested              nested tensors of layout jagged, of contiguous q, k, v; both bounds of the lengths given
    cudnn thd                packed sequences by nvidia-cudnn-frontend
    flash-attn-4             flash_attn.cute

Padding and masks beforehand and unpadding afterwards are not counted for those that need it. Nobody but flex_attention
could give the gradient of a key weight, and none is asked for it.
"""

import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu.workloads import Buffers, rows_of_full_sequences

MAX_ERROR = 0.02
VARLEN_ATTN = ("varlen_attn flash", "varlen_attn cudnn")  # the better one is torch's best on packed sequences


class UnavailableError(Exception):
    """A peer does not run on this machine or on these inputs; the text says why."""


@dataclass
class Prepared:
    """A peer on one set of buffers.

    Attributes:
        forward: the call to time. backward: likewise, dq, dk, dv for the upstream gradient.
        packed: from its layout to [total, heads, head_dim].
        rows: packed rows in which the result is right; None for all.
        note: on these inputs, for the table.
    """

    forward: Callable[[], Tensor]
    backward: Callable[[], Sequence[Tensor]]
    packed: Callable[[Tensor], Tensor] = lambda x: x
    rows: Tensor | None = None
    note: str = ""


@dataclass(frozen=True)
class Peer:
    """Attributes:
    name: as in the tables.
    prepare: makes it ready on one set of buffers.
    device_types: where it runs.
    exact: does the same work as ours; else it is not among those to beat.
    compiled: takes many seconds to get ready.
    limit_s: where getting ready took longer, it is left out afterwards.
    note: for the table.
    """

    name: str
    prepare: Callable[[Buffers], Prepared]
    device_types: tuple[str, ...] = ("cuda", "cpu")
    exact: bool = True
    compiled: bool = False
    limit_s: float = 20
    note: str = ""


def autograd(call: Callable[[], Tensor], leaves: Sequence[Tensor], dout: Tensor) -> Callable[[], Sequence[Tensor]]:
    """The backward pass of `call` alone; its graph is built at the first use and kept."""
    kept: list[Tensor] = []

    def backward() -> Sequence[Tensor]:
        if not kept:
            with torch.enable_grad():
                kept.append(call())
        return torch.autograd.grad(kept[0], leaves, dout, retain_graph=True)

    return backward


def _padded_sdpa(x: Buffers, backend: SDPBackend, masked: bool) -> Prepared:
    leaves = x.padded_leaves()
    full = bool(x.present.all())
    mask = None
    if masked and not full:
        # Added to the scores: a boolean one would be made into this at every call.
        mask = torch.zeros_like(x.present, dtype=x.dtype).masked_fill(~x.present, -torch.inf)[:, None, None, :]
    dout = x.pad(x.dout).transpose(1, 2)
    backend = backend if x.device.type == "cuda" else SDPBackend.MATH

    def forward() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*leaves, attn_mask=mask)

    rows = None if masked or full else rows_of_full_sequences(x.workload.lengths).to(x.device)
    return Prepared(forward, autograd(forward, leaves, dout), x.unpad, rows)


def _padded_flash(x: Buffers) -> Prepared:
    return _padded_sdpa(x, SDPBackend.FLASH_ATTENTION, masked=False)


def _padded_efficient(x: Buffers) -> Prepared:
    return _padded_sdpa(x, SDPBackend.EFFICIENT_ATTENTION, masked=True)


def _padded_cudnn(x: Buffers) -> Prepared:
    return _padded_sdpa(x, SDPBackend.CUDNN_ATTENTION, masked=True)


@contextmanager
def _flash_only(varlen: Any) -> Iterator[None]:
    """Keeps `varlen_attn` from cuDNN, forward and backward, in every version of it."""
    if hasattr(varlen, "_select_backend"):  # follows the backends of scaled_dot_product_attention
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            yield
        return
    # Looked up at every call, in the backward pass once more.
    name = "_can_use_cudnn" if hasattr(varlen, "_can_use_cudnn") else "_should_use_cudnn"
    kept = getattr(varlen, name)
    setattr(varlen, name, lambda *_, **__: False)
    try:
        yield
    finally:
        setattr(varlen, name, kept)


def _varlen_takes_cudnn(varlen: Any, x: Buffers) -> bool:
    """What `varlen_attn` does by itself with these inputs."""
    longest, window = x.workload.longest, [-1, -1]
    if hasattr(varlen, "_select_backend"):
        chosen = varlen._select_backend(x.q, x.k, x.v, x.offsets, x.offsets, longest, window)
        return bool(chosen == SDPBackend.CUDNN_ATTENTION.value)
    if hasattr(varlen, "_can_use_cudnn"):  # torch 2.14
        return bool(varlen._can_use_cudnn(x.q, x.k, x.v, longest, window))
    # Torch 2.10 and 2.11 answer no for every device.
    return bool(varlen._should_use_cudnn(x.device.index))


def _varlen_attn(x: Buffers, cudnn: bool) -> Prepared:
    try:
        varlen = importlib.import_module("torch.nn.attention.varlen")
    except ImportError as error:
        raise UnavailableError("torch.nn.attention.varlen comes with torch 2.10") from error
    chooses = hasattr(varlen, "_select_backend") or hasattr(varlen, "_can_use_cudnn")
    if cudnn and not chooses:
        # Their cuDNN gradient takes head_dim for the longest length, and writes past its buffer.
        raise UnavailableError(f"torch {torch.__version__} cannot choose cuDNN (pytorch/pytorch#186142)")
    by_default = _varlen_takes_cudnn(varlen, x)
    if cudnn and not by_default:
        raise UnavailableError("varlen_attn takes flash: not sm90 or sm100, cuDNN before 9.18, or at most 128 tokens")
    longest = x.workload.longest

    def attend() -> Tensor:
        # Non-causal by default, in every version; what else it takes has changed.
        return varlen.varlen_attn(x.q, x.k, x.v, x.offsets, x.offsets, longest, longest)

    differentiate = autograd(attend, x.leaves, x.dout)

    def kept_from_cudnn(call: Callable[[], Any]) -> Any:
        with _flash_only(varlen):
            return call()

    note = f"varlen_attn by itself takes {'cuDNN' if by_default else 'flash'}"
    if not by_default or cudnn:
        return Prepared(attend, differentiate, note=note)
    return Prepared(partial(kept_from_cudnn, attend), partial(kept_from_cudnn, differentiate), note=note)


def _varlen_flash(x: Buffers) -> Prepared:
    return _varlen_attn(x, cudnn=False)


def _varlen_cudnn(x: Buffers) -> Prepared:
    return _varlen_attn(x, cudnn=True)


def document_mask(x: Buffers) -> Any:
    """FlexAttention's block mask: a query attends to the keys of its own sequence."""
    from torch.nn.attention.flex_attention import create_block_mask

    document, total = x.document, x.workload.total
    return create_block_mask(
        lambda b, h, q, k: document[q] == document[k], None, None, total, total, device=x.device.type
    )


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


_masks: dict[tuple[int, ...], Any] = {}


def _flex(x: Buffers) -> Prepared:
    from torch.nn.attention.flex_attention import flex_attention

    lengths = x.workload.lengths
    if lengths not in _masks:
        _masks.clear()  # they are large
        _masks[lengths] = document_mask(x)
    mask = _masks[lengths]
    attend = _compiled_flex() if x.device.type == "cuda" else flex_attention

    def forward() -> Tensor:
        # [total, heads, head_dim] -> [1, heads, total, head_dim]
        return attend(*(leaf.transpose(0, 1)[None] for leaf in x.leaves), block_mask=mask)[0].transpose(0, 1)

    return Prepared(forward, autograd(forward, x.leaves, x.dout))


def mask_build_seconds(x: Buffers) -> float:
    """What the document mask takes to build, which is no part of the times of flex_attention."""
    document_mask(x)
    _synchronize(x.device)
    start = time.perf_counter()
    document_mask(x)
    _synchronize(x.device)
    return time.perf_counter() - start


def _nested(x: Buffers) -> Prepared:
    offsets = x.offsets.long()  # jagged tensors want int64
    lengths = {"min_seqlen": min(x.workload.lengths), "max_seqlen": x.workload.longest}
    # Not cuDNN, which may build a plan at every call.
    backend = SDPBackend.FLASH_ATTENTION if x.device.type == "cuda" else SDPBackend.MATH
    leaves = [leaf.detach().contiguous().requires_grad_() for leaf in x.leaves]

    def forward() -> Tensor:
        # values [total, heads, head_dim] -> [batch, heads, any, head_dim]
        q, k, v = (torch.nested.nested_tensor_from_jagged(leaf, offsets, **lengths).transpose(1, 2) for leaf in leaves)
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values()

    return Prepared(forward, autograd(forward, leaves, x.dout))


def _cudnn_thd(x: Buffers) -> Prepared:
    if importlib.util.find_spec("cudnn") is None:
        raise UnavailableError("nvidia-cudnn-frontend is not installed")
    if os.environ.get("MSVIT_CUDNN_THD") != "1":
        raise UnavailableError("its forward plan has lost an H100 (cuDNN 9.19); MSVIT_CUDNN_THD=1 tries it again")
    from gpu.cudnn_thd import prepare

    forward, backward = prepare(x)
    return Prepared(forward, backward)


def _flash_attn_4(x: Buffers) -> Prepared:
    if importlib.util.find_spec("flash_attn") is None or importlib.util.find_spec("flash_attn.cute") is None:
        raise UnavailableError("flash-attn-4 is not installed")
    from flash_attn.cute import flash_attn_varlen_func  # type: ignore[import-not-found]

    longest = x.workload.longest

    def forward() -> Tensor:
        result = flash_attn_varlen_func(
            x.q, x.k, x.v, cu_seqlens_q=x.offsets, cu_seqlens_k=x.offsets, max_seqlen_q=longest, max_seqlen_k=longest
        )
        return result[0] if isinstance(result, tuple) else result

    return Prepared(forward, autograd(forward, x.leaves, x.dout))


# Those that compile come last: they may take most of the time that a part has.
PEERS = (
    Peer("varlen_attn flash", _varlen_flash, ("cuda",)),
    Peer("varlen_attn cudnn", _varlen_cudnn, ("cuda",)),
    Peer("sdpa padded efficient", _padded_efficient, note="key mask"),
    Peer("sdpa padded cudnn", _padded_cudnn, ("cuda",), note="key mask"),
    Peer("sdpa padded flash", _padded_flash, exact=False, note="no mask: padded keys are attended to"),
    Peer("sdpa nested", _nested),
    Peer("cudnn thd", _cudnn_thd, ("cuda",)),
    Peer("flash-attn-4", _flash_attn_4, ("cuda",), compiled=True, limit_s=60),
    Peer("flex_attention", _flex, ("cuda",), compiled=True, limit_s=60, note="document mask built before"),
)


def is_exact(peer: Peer, lengths: Sequence[int]) -> bool:
    """Whether the peer does the work that is asked for: without padding an unmasked call does."""
    return peer.exact or len(set(lengths)) == 1


def relative_error(actual: Tensor, oracle: Tensor, rows: Tensor | None) -> float:
    """||actual - oracle|| / ||oracle|| over the rows in which the result should be right; NaN counts as infinite."""
    actual, oracle = actual.detach().double(), oracle.double()
    if rows is not None:
        actual, oracle = actual[rows], oracle[rows]
    error = float((actual - oracle).norm() / oracle.norm().clamp_min(1e-30))
    return error if error == error else float("inf")


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
