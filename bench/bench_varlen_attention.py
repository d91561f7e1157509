"""Times `varlen_attention` against the alternatives in torch on the same sequences, forward and backward.

    python bench/bench_varlen_attention.py

The work is self-attention inside every sequence of a packed batch, 6 heads of 64 as in ViT-S; q, k and v are views of
one packed projection. The alternatives are the exact peers of bench/peers.py that run on the device.

The backward pass is timed alone, on a retained graph; ours includes the gradient of the key weights, which no
alternative computes. Operations: 4 n^2 heads head_dim forward, 2.5 times that backward.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from bench.attention.ours import Oracle, prepare_ours
from bench.attention.prepared import Prepared
from bench.attention.workloads import Buffers, Workload, uniform
from bench.command_line import DTYPES
from bench.failures import is_fatal, reason
from bench.operators.cases import Case, CaseMaker, Setting, backends_to_time, check_baseline
from bench.operators.command import main
from bench.peers import PEERS, is_exact
from msvit_kernels import testing, varlen_attention

# (number of sequences, shortest, longest)
SHAPES = {
    "cpu": [(16, 64, 196), (16, 49, 49), (16, 196, 196), (8, 576, 576), (4, 1024, 1024), (1, 196, 196), (1, 576, 576)],
    "cuda": [(256, 64, 196), (256, 196, 196), (64, 576, 576), (32, 1024, 1024), (1, 196, 196)],
    "quick": [(4, 16, 64), (1, 49, 49)],
}


def prepare_peers(x: Buffers) -> dict[str, Prepared]:
    """The exact peers that run on the buffers' device, by name; a peer that fails is left out with a message."""
    found = {}
    for peer in PEERS:
        if x.device.type not in peer.device_types or not is_exact(peer, x.workload.lengths):
            continue
        name = f"torch {peer.name}" if peer.of_torch else peer.name
        try:
            prepared = peer.prepare(x)
            with torch.no_grad():
                prepared.forward()
            prepared.backward()
        except Exception as error:  # torch refuses some peers on this GPU or in this dtype
            if is_fatal(error):
                raise
            print(f"{name} is left out: {reason(error)}")
            continue
        found[name] = prepared
    return found


def make_case(x: Buffers, fields: dict[str, Any], backward: bool) -> Case:
    """All methods in one direction; in the backward pass ours have key weights."""
    backends = backends_to_time("varlen_attention", x.device, x.dtype, head_dim=x.workload.head_dim)
    ours = {backend: prepare_ours(x, backend, weighted=backward) for backend in backends}
    peers = prepare_peers(x)

    def check() -> None:
        oracle = Oracle(x)
        for judge, all_prepared in ((partial(oracle.judge_ours, weighted=backward), ours), (oracle.judge_other, peers)):
            for name, prepared in all_prepared.items():
                try:
                    judge(prepared)
                except AssertionError as error:
                    raise AssertionError(f"{name} {error}") from error

    methods: dict[str, Callable[[], Any]] = {
        name: prepared.backward if backward else prepared.forward for name, prepared in {**ours, **peers}.items()
    }
    flop = x.workload.flop(backward)
    # On a GPU, memory bandwidth limits short sequences; on a CPU the data stay in its caches.
    moved = x.workload.bytes(backward, x.dtype.itemsize) if x.device.type == "cuda" else 0
    return Case(fields, methods, check, flop, moved, few=("reference", "torch sdpa nested"))


def host_case(dtype_name: str, device: torch.device) -> Case:
    """One token and one head, so that the time is the host's cost of a call."""
    dtype = DTYPES[dtype_name]
    q, k, v = testing.qkv_views(1, 1, 16, dtype, device)
    offsets = testing.offsets([1], device)
    q4, k4, v4 = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, heads, 1, head_dim]
    methods: dict[str, Callable[[], Any]] = {
        backend: partial(varlen_attention, q, k, v, offsets, 1, backend=backend)
        for backend in backends_to_time("varlen_attention", device, dtype, head_dim=16)
    }
    methods["torch sdpa"] = partial(F.scaled_dot_product_attention, q4, k4, v4)
    fields = {"shape": "1 token (host cost)", "direction": "fwd", "dtype": dtype_name}

    def check() -> None:
        for name, call in methods.items():
            check_baseline(name, call().view(-1), v.view(-1).double())

    return Case(fields, methods, check, host=True)


def shape_case(shape: tuple[int, int, int], dtype_name: str, direction: str, device: torch.device) -> Case:
    """All methods on sequences of a shape, with fixed random lengths."""
    count, shortest, longest = shape
    label = f"{count} x {shortest}" + (f"..{longest}" if longest > shortest else "")
    fields = {"shape": label, "direction": direction, "dtype": dtype_name}
    workload = Workload(label, uniform(count, shortest, longest))
    return make_case(Buffers(workload, DTYPES[dtype_name], device), fields, direction == "bwd")


def cases(setting: Setting) -> list[CaseMaker]:
    """The host's cost, then every shape in every dtype and direction."""
    shapes = SHAPES["quick" if setting.quick else setting.device.type]
    makers: list[CaseMaker] = [partial(host_case, dtype_name, setting.device) for dtype_name in setting.dtypes]
    for dtype_name in setting.dtypes:
        for shape in shapes:
            makers += [partial(shape_case, shape, dtype_name, way, setting.device) for way in ("fwd", "bwd")]
    return makers


if __name__ == "__main__":
    main("varlen_attention", cases, __doc__)
