"""Prepares backends and peers on the buffers of a workload, and checks each before it is timed."""

import faulthandler
import sys
import time
from collections.abc import Sequence

import torch

from bench.attention import flex
from bench.attention.ours import Oracle, prepare_ours
from bench.attention.prepared import Prepared
from bench.attention.workloads import Buffers
from bench.failures import is_fatal, reason
from bench.operators.cases import backends_to_time
from bench.peers import PEERS, Peer

WEIGHTED = " + key weight"
READY_SECONDS = 90  # limit for compiling and checking a backend of ours on one workload
LOST_EARLIER = "it has stopped an earlier run"


class Preparation:
    """Prepares methods within a time limit.

    Args:
        device: device of the buffers.
        deadline: moment of `time.perf_counter` at which the part ends.
        without: backends and peers to leave out.
        methods: backends and peers to measure; all if empty.

    Attributes:
        dtype: dtype of the buffers: bf16 on a GPU, fp32 on a CPU.
        notes: methods that were left out, with reasons.
        failures: errors of our backends.
    """

    def __init__(
        self, device: torch.device, deadline: float, without: Sequence[str] = (), methods: Sequence[str] = ()
    ) -> None:
        self.device, self.deadline, self.without, self.methods = device, deadline, without, methods
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.notes: list[str] = []
        self.failures: list[str] = []
        self._slow: dict[str, str] = {}  # peers that took too long to get ready, with the note to repeat

    @property
    def left(self) -> float:
        """Seconds before the deadline."""
        return self.deadline - time.perf_counter()

    def note(self, text: str) -> None:
        """Records and prints, only once, that something was left out."""
        if text not in self.notes:
            self.notes.append(text)
            print(f"left out: {text}", flush=True)

    def ready(self, buffers: Sequence[Buffers], with_compiled: bool) -> dict[str, list[Prepared]]:
        """All correct methods by name, on every set of buffers; `with_compiled` includes peers that compile."""
        oracle = Oracle(buffers[0])
        found: dict[str, list[Prepared]] = {}
        head_dim = buffers[0].workload.head_dim
        for backend in backends_to_time("varlen_attention", self.device, self.dtype, head_dim=head_dim):
            if backend == "reference" or not self._is_wanted(backend):
                continue
            for weighted in (False, True):
                if prepared := self._ours(buffers, backend, weighted, oracle):
                    found[backend + WEIGHTED * weighted] = prepared
        for peer in PEERS:
            if self._is_wanted(peer.name) and (prepared := self._peer(peer, buffers, oracle, with_compiled)):
                found[peer.name] = prepared
        return found

    def _is_wanted(self, name: str) -> bool:
        if self.methods and name not in self.methods:
            return False
        if name in self.without:
            self.note(f"{name}: {LOST_EARLIER}")
            return False
        return True

    def _ours(self, buffers: Sequence[Buffers], backend: str, weighted: bool, oracle: Oracle) -> list[Prepared] | None:
        print(f"preparing: {backend}", flush=True)
        # A kernel that never ends would use up the time of all others.
        faulthandler.dump_traceback_later(READY_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)
        try:
            first = prepare_ours(buffers[0], backend, weighted)
            oracle.judge_ours(first, weighted)
            return [first, *(prepare_ours(x, backend, weighted) for x in buffers[1:])]
        except Exception as error:
            self.failures.append(f"{backend + WEIGHTED * weighted}, {buffers[0].workload.label}: {reason(error)}")
            self.note(self.failures[-1])
            if is_fatal(error):
                raise
            return None
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _peer(
        self, peer: Peer, buffers: Sequence[Buffers], oracle: Oracle, with_compiled: bool
    ) -> list[Prepared] | None:
        label = buffers[0].workload.label
        if why := self._why_not(peer, label, with_compiled):
            self.note(why)
            return None
        start = time.perf_counter()
        print(f"preparing: {peer.name}", flush=True)
        try:
            first = peer.prepare(buffers[0])
            oracle.judge_other(first)
            prepared = [first, *(peer.prepare(x) for x in buffers[1:])]
            if peer.name == "flex_attention":
                self.note(f"{peer.name}, {label}: {flex.mask_build_seconds(buffers[0]) * 1e3:.1f} ms for the mask")
        except Exception as error:
            self.note(f"{peer.name}, {label}: {reason(error)}")
            if is_fatal(error):
                raise
            return None
        taken = time.perf_counter() - start
        if taken > peer.limit_s:
            self._slow[peer.name] = f"{peer.name} after {label}, where it took {taken:.0f} s to get ready"
        return prepared

    def _why_not(self, peer: Peer, label: str, with_compiled: bool) -> str:
        """The reason why a peer is not tried; empty if it is."""
        if self.device.type not in peer.device_types:
            return f"{peer.name}: not on a {self.device.type.upper()}"
        if peer.name in self._slow:
            return self._slow[peer.name]
        if peer.compiled and not (with_compiled and self.left > peer.limit_s / 2):
            return f"{peer.name}, {label}: it would have to be compiled anew"
        return ""
