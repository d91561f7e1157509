"""Attention on packed sequences from libraries other than torch, if they are installed."""

import importlib.util
import os

from torch import Tensor

from bench.attention.prepared import Prepared, UnavailableError
from bench.attention.workloads import Buffers
from bench.passes import backward_alone


def cudnn_thd(x: Buffers) -> Prepared:
    """nvidia-cudnn-frontend, if MSVIT_CUDNN_THD is 1."""
    if importlib.util.find_spec("cudnn") is None:
        raise UnavailableError("nvidia-cudnn-frontend is not installed")
    if os.environ.get("MSVIT_CUDNN_THD") != "1":
        raise UnavailableError("its forward plan crashed an H100 (cuDNN 9.19); set MSVIT_CUDNN_THD=1 to try it again")
    from bench.attention.cudnn_thd import prepare

    forward, backward = prepare(x)
    return Prepared(forward, backward)


def flash_attn_4(x: Buffers) -> Prepared:
    """`flash_attn.cute`."""
    if importlib.util.find_spec("flash_attn") is None or importlib.util.find_spec("flash_attn.cute") is None:
        raise UnavailableError("flash-attn-4 is not installed")
    from flash_attn.cute import flash_attn_varlen_func  # type: ignore[import-not-found]

    longest = x.workload.longest

    def forward() -> Tensor:
        result = flash_attn_varlen_func(
            x.q, x.k, x.v, cu_seqlens_q=x.offsets, cu_seqlens_k=x.offsets, max_seqlen_q=longest, max_seqlen_k=longest
        )
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out

    return Prepared(forward, backward_alone(forward, x.leaves, x.dout))
