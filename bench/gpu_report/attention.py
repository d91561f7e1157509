"""Times `varlen_attention` of every backend and of the peers, forward and backward; one part of bench/gpu_report.py.

    python bench/gpu/attention.py --seconds 150

Everything that is timed has matched fp64 before: ours within the project's tolerance, peers within a relative error of
0.02. Rows are written after every workload, so that what ends early leaves what it has.
"""

import argparse
import faulthandler
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import torch
from gpu import commands, peers, timing
from gpu.workloads import Buffers, Workload, cpu_workloads, gpu_workloads, rotations
from torch import Tensor

from msvit_kernels import testing, varlen_attention

WEIGHTED = " + key weight"
READY_SECONDS = 90  # in which a backend of ours must be compiled and checked on one workload
Row = dict[str, Any]


def ours(x: Buffers, backend: str, weighted: bool) -> peers.Prepared:
    """A backend of this project on one set of buffers."""
    leaves = [*x.leaves, x.weight] if weighted else x.leaves
    weight = x.weight if weighted else None

    def forward() -> Tensor:
        return varlen_attention(x.q, x.k, x.v, x.offsets, x.workload.longest, key_weight=weight, backend=backend)

    return peers.Prepared(forward, peers.autograd(forward, leaves, x.dout))


def reference(x: Buffers, dtype: torch.dtype, weighted: bool) -> list[Tensor]:
    """out, dq, dk, dv and, with weights, dweight of the reference backend in a dtype."""
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in x.leaves]
    weight = None
    if weighted:
        weight = x.weight.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    out = varlen_attention(*leaves, x.offsets, x.workload.longest, key_weight=weight, backend="reference")
    gradients = torch.autograd.grad(out, leaves + ([weight] if weighted else []), x.dout.to(dtype))
    return [out.detach(), *gradients]


class Oracle:
    """What results are held against, each computed once."""

    def __init__(self, x: Buffers) -> None:
        self.plain = reference(x, torch.float64, weighted=False)
        self.weighted = reference(x, torch.float64, weighted=True)
        self.eager = reference(x, x.dtype, weighted=True)

    def judge_ours(self, prepared: peers.Prepared, weighted: bool) -> None:
        """Raises AssertionError where a backend of ours is wrong."""
        with torch.no_grad():
            out = prepared.forward()
        results = [out, *prepared.backward()]
        names = ("out", "dq", "dk", "dv", "dweight")
        if weighted:
            for name, *values in zip(names, results, self.eager, self.weighted, strict=True):
                testing.assert_accurate(name, *values)
        else:
            self._judge(names, results, None)

    def judge_peer(self, prepared: peers.Prepared) -> None:
        """Raises AssertionError where a peer computes something else."""
        with torch.no_grad():
            out = prepared.forward()
        results = [prepared.packed(result) for result in (out, *prepared.backward())]
        # Without a mask gradients of keys come from padded queries too: only the result is comparable.
        self._judge(("out", "dq", "dk", "dv") if prepared.rows is None else ("out",), results, prepared.rows)

    def _judge(self, names: Sequence[str], results: Sequence[Tensor], rows: Tensor | None) -> None:
        for name, result, oracle in zip(names, results, self.plain, strict=False):
            error = peers.relative_error(result, oracle, rows)
            assert error <= peers.MAX_ERROR, f"{name}: relative error {error:.3g} against fp64"


class Part:
    """Measures workload after workload until the time is over.

    Attributes:
        rows: of the CSV. notes: what was left out, and why. failures: what of ours is wrong.
    """

    def __init__(
        self,
        device: torch.device,
        seconds: float,
        quick: bool,
        output: Path | None,
        without: Sequence[str] = (),
        workloads: Sequence[str] = (),
        methods: Sequence[str] = (),
    ) -> None:
        self.device, self.quick, self.output, self.without, self.methods = device, quick, output, without, methods
        self.seconds, self.deadline = seconds, time.perf_counter() + seconds
        self.workloads = cpu_workloads() if quick or device.type == "cpu" else gpu_workloads()
        if workloads:
            by_label = {each.label: each for each in self.workloads}
            self.workloads = [by_label[label if "," in label else f"{label}, head_dim 64"] for label in workloads]
        # What is left for the clock once everything is prepared and checked, for each workload and direction.
        self.sample_seconds = 0.1 if quick else min(2.0, max(0.3, 0.3 * seconds / len(self.workloads) / 2))
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.failures: list[str] = []
        self.slow: dict[str, str] = {}
        self.ceilings = common.Roofline.measure(device, self.dtype, 0.1 if quick else 1.0)
        self.facts = common.facts(device)

    @property
    def left(self) -> float:
        return self.deadline - time.perf_counter()

    def run(self) -> None:
        longest = 0.0
        for index, workload in enumerate(self.workloads):
            if self.left < max(longest, 2.0) and index:
                rest = ", ".join(each.label for each in self.workloads[index:])
                self.note(f"the time was over before: {rest}")
                break
            start = time.perf_counter()
            # Compiling takes the time of several workloads.
            with_compiled = index == 0 or (index < 3 and self.left > 0.6 * self.seconds)
            known = len(self.rows)
            self.measure(workload, with_compiled)
            longest = 0.0 if with_compiled else max(longest, time.perf_counter() - start)
            self.write()
            for row in finished(self.rows[known:], self.ceilings, self.facts):
                print(line(row), flush=True)
        ceilings = common.Roofline.measure(self.device, self.dtype, 0.1 if self.quick else 1.0)
        self.ceilings = self.ceilings.best(ceilings)
        self.write()

    def measure(self, workload: Workload, with_compiled: bool) -> None:
        """All methods on one workload, in both directions."""
        moved = workload.bytes(False, self.dtype.itemsize)
        sets = 2 if self.quick else rotations(moved, timing.cache_bytes(self.device))
        buffers = [Buffers(workload, self.dtype, self.device, seed) for seed in range(sets)]
        oracle = Oracle(buffers[0])
        ready: dict[str, list[peers.Prepared]] = {}
        for backend in self.backends(workload):
            if self.methods and backend not in self.methods:
                continue
            if backend in self.without:
                self.note(f"{backend}: it has stopped an earlier run")
                continue
            for weighted in (False, True):
                name = backend + WEIGHTED * weighted
                prepared = self._prepare_ours(name, buffers, backend, weighted, oracle)
                if prepared:
                    ready[name] = prepared
        for peer in peers.PEERS:
            if self.methods and peer.name not in self.methods:
                continue
            if peer.name in self.without:
                self.note(f"{peer.name}: it has stopped an earlier run")
                continue
            prepared = self._prepare_peer(peer, buffers, oracle, with_compiled)
            if prepared:
                ready[peer.name] = prepared
        for backward in (False, True):
            calls = {name: [p.backward if backward else p.forward for p in each] for name, each in ready.items()}
            with torch.no_grad():
                calls = {name: each for name, each in calls.items() if self._runs(name, each, workload)}
                times = timing.time_methods(calls, self.device, self.sample_seconds)
                hosts = self._host_us(calls) if workload.name == "1 x 196" and not backward else {}
            for name, each in times.items():
                if each.graph_error:
                    self.note(f"{name}, {workload.label}: no CUDA graph: {each.graph_error}")
                row = self._row(workload, backward, name, each, sets)
                row["note"] = "; ".join(filter(None, (row["note"], ready[name][0].note)))
                self.rows.append(row | {"host_us": hosts.get(name)})

    def backends(self, workload: Workload) -> list[str]:
        """Of ours, those that run here and whose times mean something."""
        found = testing.backends_for("varlen_attention", self.device.type, self.dtype, head_dim=workload.head_dim)
        emulated = {"triton", "cuda"} if self.device.type == "cpu" else set()
        return [name for name in found if name not in emulated | {"reference"}]

    def note(self, text: str) -> None:
        """Remembers and prints what was left out, once."""
        if text not in self.notes:
            self.notes.append(text)
            print(f"left out: {text}", flush=True)

    def write(self) -> None:
        """Rows so far, with the ceilings as known by now."""
        if self.output is not None and self.rows:
            common.write_csv(self.output / "attention.csv", finished(self.rows, self.ceilings, self.facts))

    def _prepare_ours(
        self, name: str, buffers: list[Buffers], backend: str, weighted: bool, oracle: Oracle
    ) -> list[peers.Prepared] | None:
        label = f"{name}, {buffers[0].workload.label}"
        print(f"preparing: {backend}", flush=True)
        # A kernel that never ends would take the time of everything else.
        faulthandler.dump_traceback_later(READY_SECONDS, exit=True, file=sys.__stderr__)
        try:
            first = ours(buffers[0], backend, weighted)
            oracle.judge_ours(first, weighted)
            return [first, *(ours(x, backend, weighted) for x in buffers[1:])]
        except Exception as error:
            self.failures.append(f"{label}: {timing.reason(error)}")
            self.note(self.failures[-1])
            self._stop_if_fatal(error)
            return None
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _prepare_peer(
        self, peer: peers.Peer, buffers: list[Buffers], oracle: Oracle, with_compiled: bool
    ) -> list[peers.Prepared] | None:
        label = buffers[0].workload.label
        if self.device.type not in peer.device_types:
            self.note(f"{peer.name}: not on a {self.device.type.upper()}")
            return None
        if peer.name in self.slow:
            self.note(self.slow[peer.name])
            return None
        if peer.compiled and not (with_compiled and self.left > peer.limit_s / 2):
            self.note(f"{peer.name}, {label}: it would have to be compiled anew")
            return None
        start = time.perf_counter()
        print(f"preparing: {peer.name}", flush=True)
        try:
            first = peer.prepare(buffers[0])
            oracle.judge_peer(first)
            prepared = [first, *(peer.prepare(x) for x in buffers[1:])]
            if peer.name == "flex_attention":
                self.note(f"{peer.name}, {label}: {peers.mask_build_seconds(buffers[0]) * 1e3:.1f} ms for the mask")
        except Exception as error:
            self.note(f"{peer.name}, {label}: {timing.reason(error)}")
            self._stop_if_fatal(error)
            return None
        taken = time.perf_counter() - start
        if taken > peer.limit_s:
            self.slow[peer.name] = f"{peer.name} after {label}, where it took {taken:.0f} s to get ready"
        return prepared

    def _runs(self, name: str, calls: list[Callable[[], Any]], workload: Workload) -> bool:
        """Warms up every set of buffers."""
        try:
            for call in calls:
                call()
        except Exception as error:
            self.note(f"{name}, {workload.label}: {timing.reason(error)}")
            self._stop_if_fatal(error)
            return False
        return True

    def _stop_if_fatal(self, error: Exception) -> None:
        if timing.is_fatal(error):
            raise error

    def _host_us(self, calls: dict[str, list[Callable[[], Any]]]) -> dict[str, float]:
        """Median of what the host spends on a call, without waiting for the device."""
        cpu = torch.device("cpu")
        single = {name: each[0] for name, each in calls.items()}
        samples = common.interleave(single, cpu, self.sample_seconds, sample_seconds=1e-3)
        return {name: common.quantiles(each)["p50"] * 1e6 for name, each in samples.items()}

    def _row(self, workload: Workload, backward: bool, name: str, times: timing.Times, sets: int) -> Row:
        weighted = name.endswith(WEIGHTED)
        peer = next((peer for peer in peers.PEERS if peer.name == name), None)
        best = common.quantiles(times.best)["p50"]
        moved = workload.bytes(backward, self.dtype.itemsize, weighted)
        return {
            "bench": "gpu_attention", "workload": workload.name, "head_dim": workload.head_dim,
            "num_heads": workload.num_heads, "tokens": workload.total, "direction": "bwd" if backward else "fwd",
            "dtype": str(self.dtype).removeprefix("torch."), "method": name, "ours": peer is None,
            "exact": peer is None or peers.is_exact(peer, workload.lengths), "note": peer.note if peer else "",
            "buffer_sets": sets, **timing.columns(times),
            "gb_s": moved / best / 1e9, "tflop_s": workload.flop(backward) / best / 1e12,
            "least_bytes": moved, "flop": workload.flop(backward),
        }  # fmt: skip


def finished(rows: list[Row], ceilings: common.Roofline, facts: dict[str, Any]) -> list[Row]:
    """The rows with their shares of the ceilings and their ratios to the peers of the same workload and direction."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["workload"], row["head_dim"], row["direction"]), []).append(row)
    done = []
    for row in rows:
        group = groups[row["workload"], row["head_dim"], row["direction"]]
        matmul = ceilings.peak_gflop_s / 1e3
        floor = max(row["least_bytes"] / ceilings.copy_gb_s / 1e3, row["flop"] / matmul / 1e6)
        best = row.get("graph_p50_us") or row["eager_p50_us"]
        extra: Row = {
            "floor_us": floor, "share_of_floor": floor / best,
            "share_of_copy": row["gb_s"] / ceilings.copy_gb_s, "share_of_matmul": row["tflop_s"] / matmul,
        }  # fmt: skip
        for kind in ("graph", "eager"):
            column = f"{kind}_p50_us"
            extra |= {f"{kind}_times_{name}": None for name in ("best_peer", "varlen_attn")}
            peer_rows = [each for each in group if not each["ours"] and each["exact"] and each.get(column)]
            if peer_rows and row.get(column):
                winner = min(peer_rows, key=lambda each: each[column])
                extra |= {f"{kind}_best_peer": winner["method"]}
                extra |= {f"{kind}_times_best_peer": winner[column] / row[column]}
                torch_times = [each[column] for each in peer_rows if each["method"] in peers.VARLEN_ATTN]
                if torch_times:
                    extra |= {f"{kind}_times_varlen_attn": min(torch_times) / row[column]}
        done.append(row | extra | ceilings.columns() | facts)
    return done


def argument_parser() -> argparse.ArgumentParser:
    """What all measuring parts of the report take."""
    parser = argparse.ArgumentParser(description="One part of bench/gpu_report.py.")
    parser.add_argument("--seconds", type=float, default=150, help="for everything (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small shapes: a smoke test")
    parser.add_argument("--device", help="cpu or cuda; found by itself where not given")
    parser.add_argument("--output", type=Path, help="folder of the CSV; none is written where not given")
    parser.add_argument("--without", default="", help="backends and peers to leave out, with commas between")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the part; 1 where a backend of ours is wrong, `commands.LOST_DEVICE` where the device was lost."""
    parser = argument_parser()
    parser.add_argument("--methods", default="", help="backends and peers to measure, with commas between")
    parser.add_argument("--workloads", default="", help="to measure, with semicolons between, such as '512 x 49'")
    arguments = parser.parse_args(argv)
    device = common.find_device(arguments.device)
    without, methods = (tuple(filter(None, each.split(","))) for each in (arguments.without, arguments.methods))
    workloads = tuple(filter(None, arguments.workloads.split(";")))
    # Graphs are captured, and backward passes run, on the stream of the forward pass: not the default one.
    with torch.cuda.stream(torch.cuda.Stream()) if device.type == "cuda" else nullcontext():
        part = Part(device, arguments.seconds, arguments.quick, arguments.output, without, workloads, methods)
        try:
            part.run()
        except Exception as error:
            if not timing.is_fatal(error):
                raise
            print(f"FAILED {timing.reason(error)}", flush=True)
            return commands.LOST_DEVICE
    for failure in part.failures:
        print(f"FAILED {failure}")
    return 1 if part.failures or not part.rows else 0


def line(row: Row) -> str:
    """A row for people."""
    times = row.get("graph_p50_us") or row["eager_p50_us"]
    ratio = row["graph_times_best_peer"] or row["eager_times_best_peer"]
    return (
        f"{row['workload']:>27} d{row['head_dim']:<3} {row['direction']} {row['method']:<22} {times:9.1f} us "
        f"{row['gb_s']:7.0f} GB/s {row['tflop_s']:6.1f} TFLOP/s {row['share_of_floor']:4.0%} of floor"
        + (f" {ratio:5.2f}x best peer" if ratio else "")
    )


if __name__ == "__main__":
    sys.exit(main())
