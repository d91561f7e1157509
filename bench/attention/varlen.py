"""torch.nn.attention.varlen, with the kernel fixed to flash or to cuDNN in every version of torch that has it."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.attention.prepared import Prepared, UnavailableError
from bench.attention.workloads import Buffers
from bench.passes import backward_alone


def flash(x: Buffers) -> Prepared:
    """`varlen_attn` with cuDNN disabled."""
    return _prepare(x, cudnn=False)


def cudnn(x: Buffers) -> Prepared:
    """`varlen_attn` if its default is cuDNN: torch 2.14 on sm90 and sm100."""
    return _prepare(x, cudnn=True)


def _prepare(x: Buffers, cudnn: bool) -> Prepared:
    try:
        varlen = importlib.import_module("torch.nn.attention.varlen")
    except ImportError as error:
        raise UnavailableError("torch.nn.attention.varlen comes with torch 2.10") from error
    chooses = hasattr(varlen, "_select_backend") or hasattr(varlen, "_can_use_cudnn")
    if cudnn and not chooses:
        # Their cuDNN gradient takes head_dim for the longest length, and writes past its buffer.
        raise UnavailableError(f"torch {torch.__version__} cannot choose cuDNN (pytorch/pytorch#186142)")
    by_default = _takes_cudnn(varlen, x)
    if cudnn and not by_default:
        raise UnavailableError("varlen_attn takes flash: not sm90 or sm100, cuDNN before 9.18, or at most 128 tokens")
    longest = x.workload.longest

    def attend() -> Tensor:
        # Attention is non-causal by default in every version; other arguments have changed.
        return varlen.varlen_attn(x.q, x.k, x.v, x.offsets, x.offsets, longest, longest)

    differentiate = backward_alone(attend, x.leaves, x.dout)

    def kept_from_cudnn(call: Callable[[], Any]) -> Any:
        with _flash_only(varlen):
            return call()

    note = f"varlen_attn by itself takes {'cuDNN' if by_default else 'flash'}"
    if not by_default or cudnn:
        return Prepared(attend, differentiate, note=note)
    return Prepared(partial(kept_from_cudnn, attend), partial(kept_from_cudnn, differentiate), note=note)


@contextmanager
def _flash_only(varlen: Any) -> Iterator[None]:
    """Disables cuDNN in `varlen_attn`, forward and backward, in every version of it."""
    if hasattr(varlen, "_select_backend"):  # follows the backends of scaled_dot_product_attention
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            yield
        return
    # It is looked up at every call, and again in the backward pass.
    name = "_can_use_cudnn" if hasattr(varlen, "_can_use_cudnn") else "_should_use_cudnn"
    kept = getattr(varlen, name)
    setattr(varlen, name, lambda *_, **__: False)
    try:
        yield
    finally:
        setattr(varlen, name, kept)


def _takes_cudnn(varlen: Any, x: Buffers) -> bool:
    """Whether cuDNN is the default of `varlen_attn` with these inputs."""
    longest, window = x.workload.longest, [-1, -1]
    if hasattr(varlen, "_select_backend"):
        chosen = varlen._select_backend(x.q, x.k, x.v, x.offsets, x.offsets, longest, window)
        return bool(chosen == SDPBackend.CUDNN_ATTENTION.value)
    if hasattr(varlen, "_can_use_cudnn"):  # torch 2.14
        return bool(varlen._can_use_cudnn(x.q, x.k, x.v, longest, window))
    # In torch 2.10 and 2.11 the answer is no for every device.
    return bool(varlen._should_use_cudnn(x.device.index))
