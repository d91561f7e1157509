"""Times the launch configurations of the Triton attention kernels on this machine's GPU, for `launch_config`.

    python -m bench.gpu_report.tune --output DIR
    python -m bench.gpu_report.tune --compile-only 90    # without a GPU: fills Triton's cache for it

Every kernel is timed alone, in a CUDA graph over rotated buffers, in every combination of tile sizes, warps and stages.
A configuration is timed only if its results match those of the configuration in use.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.attention.ours import MAX_ERROR, relative_error
from bench.attention.workloads import Buffers, Workload, gpu_workloads, rotations
from bench.command_line import add_output, make_parser
from bench.failures import is_fatal, reason
from bench.gpu_report.tune_configs import DTYPE, HEAD_DIM, Config, compile_all, forced, jobs
from bench.graphs import cache_bytes, capture
from bench.machine import facts, find_device
from bench.rows import write_rows
from bench.timing import interleave, median
from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward
from msvit_kernels.triton import varlen_attention as kernels

WORKLOADS = ("256 x 64..196", "512 x 49", "256 x 196", "64 x 144..576", "57 x 576", "32 x 1024")


def calls_of(kernel: str, weighted: bool, buffers: Sequence[Buffers]) -> list[Callable[[], Any]]:
    """The launcher of one kernel on each set of buffers; backward launchers get the results of the forward pass."""
    calls: list[Callable[[], Any]] = []
    for x in buffers:
        q, k, v = (leaf.detach() for leaf in x.leaves)
        longest = x.workload.longest
        weight = x.weight.detach() if weighted else None
        call = VarlenAttention(q, k, v, x.offsets, x.offsets, longest, longest, HEAD_DIM**-0.5, weight)
        if kernel == "fwd":
            calls.append(partial(kernels.varlen_attention_fwd, call))
        else:
            saved = kernels.varlen_attention_fwd(call)
            backward = VarlenAttentionBackward(call, *saved, x.dout, dlse=None, needs_dweight=weighted)
            calls.append(partial(kernels.varlen_attention_bwd, backward))
    return calls


def results_of(kernel: str, returned: Any) -> Sequence[Tensor]:
    """The results of a launcher that this kernel writes."""
    found: dict[str, Sequence[Tensor]] = {"fwd": returned, "dq": returned[:1], "dkv": returned[1:]}
    return found[kernel]


def time_one(kernel: str, config: Config, calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Several samples of the seconds of one launch."""
    device = torch.device("cuda")
    with forced(kernel, config):
        calls[0]()
        graph, _ = capture([call for _ in range(max(1, 8 // len(calls))) for call in calls])
    launches = max(1, 8 // len(calls)) * len(calls)
    samples = interleave({"": graph.replay}, device, seconds, sample_seconds=1e-3)[""]
    del graph
    torch.cuda.empty_cache()  # the graph's memory, which was reserved for it
    return [sample / launches for sample in samples]


def measure(workload: Workload, deadline: float, known: dict[str, Any]) -> list[dict[str, Any]]:
    """CSV rows of one workload, until the deadline."""
    device = torch.device("cuda")
    sets = rotations(workload.bytes(False, 2), cache_bytes(device))
    buffers = [Buffers(workload, DTYPE, device, seed) for seed in range(sets)]
    rows: list[dict[str, Any]] = []
    expected: dict[tuple[str, bool], list[Tensor]] = {}
    calls: dict[tuple[str, bool], list[Callable[[], Any]]] = {}
    for kernel, weighted, config in jobs():
        if time.perf_counter() > deadline:
            print(f"left out: the time was over on {workload.name}", flush=True)
            break
        key = kernel, weighted
        if key not in calls:
            calls[key] = calls_of(kernel, weighted, buffers)
            expected[key] = [x.clone() for x in results_of(kernel, calls[key][0]())]
        usual = kernels.launch_config(kernel, HEAD_DIM, workload.longest, DTYPE, 90)
        try:
            with forced(kernel, config, alone=False):  # dkv reads delta, which the kernel before it leaves
                actual = results_of(kernel, calls[key][0]())
            worst = max(relative_error(a, b) for a, b in zip(actual, expected[key], strict=True))
            if not worst < MAX_ERROR:
                print(f"left out: {workload.name} {kernel} {config}: differs by {worst:.3g}", flush=True)
                continue
            samples = time_one(kernel, config, calls[key], 0.004)
        except Exception as error:
            if is_fatal(error):
                raise
            print(f"left out: {workload.name} {kernel} {config}: {reason(error)}", flush=True)
            continue
        row: dict[str, Any] = {"bench": "gpu_tune", "workload": workload.name, "kernel": kernel, "weighted": weighted}
        row |= {"maxnreg": None, **config}
        row |= {"usual": config == usual, "p50_us": median(samples) * 1e6, "samples": len(samples)}
        rows.append(row | known)
    return rows


def print_best(rows: Sequence[dict[str, Any]]) -> None:
    """Prints for each workload and kernel the three fastest configurations and the one in use."""
    for key in dict.fromkeys((row["workload"], row["kernel"], row["weighted"]) for row in rows):
        group = [row for row in rows if (row["workload"], row["kernel"], row["weighted"]) == key]
        group.sort(key=lambda row: row["p50_us"])
        shown = group[:3] + [row for row in group[3:] if row["usual"]]
        text = "; ".join(
            f"{row['p50_us']:.1f} us {row['BLOCK_M']}x{row['BLOCK_N']} w{row['num_warps']} s{row['num_stages']}"
            + (f" r{row['maxnreg']}" if row.get("maxnreg") else "")
            + " (in use)" * row["usual"]
            for row in shown
        )
        print(f"{key[0]:>14} {key[1]}{' weighted' * key[2]}: {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles, then measures workload after workload."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="time limit of the run (default: %(default)s)")
    add_output(parser, "CSV file", "none is written")
    parser.add_argument("--processes", type=int, default=12, help="compiling processes (default: %(default)s)")
    parser.add_argument("--compile-only", type=int, metavar="ARCH", help="only compile, for this compute capability")
    arguments = parser.parse_args(argv)
    deadline = time.perf_counter() + arguments.seconds
    compile_all(arguments.compile_only, arguments.processes)
    if arguments.compile_only:
        return
    print(f"compiled {len(jobs())} configurations, {deadline - time.perf_counter():.0f} s left", flush=True)
    device = find_device("cuda")
    known = facts(device)
    by_name = {each.name: each for each in gpu_workloads() if each.head_dim == HEAD_DIM}
    rows: list[dict[str, Any]] = []
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        for name in WORKLOADS:
            if time.perf_counter() > deadline:
                break
            found = measure(by_name[name], deadline, known)
            print_best(found)
            rows += found
            if arguments.output is not None:
                write_rows(arguments.output / "tune.csv", rows)


if __name__ == "__main__":
    main()
