"""The list of attention peers: other implementations of attention over sequences of different lengths.

    sdpa loop                one F.scaled_dot_product_attention call for each sequence
    sdpa padded              one call on [batch, heads, longest, head_dim] with a key mask, or without it if all lengths
                             are equal; torch chooses the kernel
    sdpa padded efficient    the same with the memory-efficient kernel
    sdpa padded cudnn        the same with cuDNN
    sdpa padded flash        the same with flash, which takes no key mask: queries attend to padded keys, so short
                             sequences get a wrong result
    sdpa nested              nested tensors of layout jagged, from contiguous q, k, v, with both bounds of the lengths
    varlen_attn flash        torch.nn.attention.varlen with cuDNN disabled
    varlen_attn cudnn        the same if cuDNN is its default: torch 2.14 on sm90 and sm100
    flex_attention           compiled, with a document mask
    cudnn thd                packed sequences by nvidia-cudnn-frontend
    flash-attn-4             flash_attn.cute

The times do not include padding, masks and unpadding. Only flex_attention could compute the gradient of a key weight;
no peer is timed with it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.attention import flex, other_libraries, padded, varlen
from bench.attention.prepared import Prepared
from bench.attention.workloads import Buffers

VARLEN_ATTN = ("varlen_attn flash", "varlen_attn cudnn")  # the better one is torch's best on packed sequences


@dataclass(frozen=True)
class Peer:
    """One implementation of attention.

    Attributes:
        name: name in tables.
        prepare: makes it ready on one set of buffers; raises UnavailableError if it does not run there.
        device_types: devices that it is measured on.
        exact: whether it does the same work as ours; if not, ours is not compared with it.
        compiled: whether it compiles, which takes many seconds.
        limit_s: seconds; if its preparation takes longer, it is left out afterwards.
        note: remark for the table.
        of_torch: whether it is part of torch.
    """

    name: str
    prepare: Callable[[Buffers], Prepared]
    device_types: tuple[str, ...]
    exact: bool = True
    compiled: bool = False
    limit_s: float = 20
    note: str = ""
    of_torch: bool = True


CPU, CUDA = "cpu", "cuda"
# Peers that compile come last: they may take most of the time that a part has.
PEERS = (
    Peer("varlen_attn flash", varlen.flash, (CUDA,)),
    Peer("varlen_attn cudnn", varlen.cudnn, (CUDA,)),
    Peer("sdpa loop", padded.loop, (CPU,)),
    Peer("sdpa padded", padded.any_kernel, (CPU,), note="key mask"),
    Peer("sdpa padded efficient", padded.efficient, (CUDA,), note="key mask"),
    Peer("sdpa padded cudnn", padded.cudnn, (CUDA,), note="key mask"),
    Peer("sdpa padded flash", padded.flash, (CUDA,), exact=False, note="no mask: padded keys are attended to"),
    Peer("sdpa nested", padded.nested, (CPU, CUDA)),
    Peer("cudnn thd", other_libraries.cudnn_thd, (CUDA,), of_torch=False),
    Peer("flash-attn-4", other_libraries.flash_attn_4, (CUDA,), compiled=True, limit_s=60, of_torch=False),
    Peer("flex_attention", flex.document, (CUDA,), compiled=True, limit_s=60, note="document mask built before"),
)


def is_exact(peer: Peer, lengths: Sequence[int]) -> bool:
    """Whether the peer does the same work as ours; without padding, an unmasked call does too."""
    return peer.exact or len(set(lengths)) == 1
