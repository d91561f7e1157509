"""Times the launch configurations of the Triton attention kernels on the GPU at hand, for `launch_config`.

    python bench/gpu/tune.py --output DIR
    python bench/gpu/tune.py --compile-only 90        # without a GPU: fills Triton's cache for one of that capability

Every kernel is timed alone, in a CUDA graph over rotated buffers, in every combination of tile sizes, warps and stages.
Nothing is timed that has not matched what the configuration in use computes.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import torch
from gpu import timing
from gpu.peers import MAX_ERROR, relative_error
from gpu.workloads import Buffers, Workload, gpu_workloads, rotations
from torch import Tensor

from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward
from msvit_kernels.triton import aot
from msvit_kernels.triton import common as triton_common
from msvit_kernels.triton import varlen_attention as kernels

KERNELS = {"fwd": kernels._fwd_kernel, "dq": kernels._bwd_dq_kernel, "dkv": kernels._bwd_dkv_kernel}
WORKLOADS = ("256 x 64..196", "512 x 49", "256 x 196", "64 x 144..576", "57 x 576", "32 x 1024")
HEAD_DIM = 64
DTYPE = torch.bfloat16
Config = dict[str, int]


def candidates(kernel: str) -> list[Config]:
    """What is tried for "fwd", "dq" or "dkv"; the axis that is split over programs is that of keys for "dkv"."""
    tiles = [(64, other, 4, stages) for other in (32, 64) for stages in (1, 2, 3, 4)]
    tiles += [(128, other, 4, stages) for other in (32, 64) for stages in (2, 3)]
    tiles += [(128, other, 8, stages) for other in (32, 64, 128) for stages in (2, 3)]
    found = []
    for split, other, warps, stages in tiles:
        blocks = (other, split) if kernel == "dkv" else (split, other)
        found.append({"BLOCK_M": blocks[0], "BLOCK_N": blocks[1], "num_warps": warps, "num_stages": stages})
    # With fewer registers one more program fits beside the others.
    smallest = {"fwd": (96, 112), "dq": (96, 112), "dkv": (128, 168)}[kernel]
    usual = [each for each in found if min(each["BLOCK_M"], each["BLOCK_N"]) == 32 and each["num_warps"] == 4]
    found += [each | {"maxnreg": most} for each in usual[:3] for most in smallest]
    return found


def jobs() -> list[tuple[str, bool, Config]]:
    """(kernel, weighted, configuration): the backward pass with weights and their gradient, as a gate is trained."""
    return [
        (kernel, weighted, config)
        for kernel, weighted in (("fwd", False), ("fwd", True), ("dq", True), ("dkv", True))
        for config in candidates(kernel)
    ]


@contextmanager
def forced(kernel: str, config: Config, alone: bool = True) -> Iterator[None]:
    """`launch_config` gives `config` for one kernel; `alone`: the launchers launch no other."""
    usual_config, usual_launch = kernels.launch_config, kernels.launch

    def launch_config(name: str, *arguments: Any) -> Config:
        return config if name == kernel else usual_config(name, *arguments)

    def launch(function: Any, *arguments: Any, **options: Any) -> None:
        if function is KERNELS[kernel] or not alone:
            usual_launch(function, *arguments, **options)

    kernels.launch_config, kernels.launch = launch_config, launch
    try:
        yield
    finally:
        kernels.launch_config, kernels.launch = usual_config, usual_launch


# ---- compiling


def compile_one(arch: int | None, job: tuple[str, bool, Config]) -> str:
    """Fills the cache with one configuration; what went wrong, or nothing. `arch`: without a GPU, for which."""
    kernel, weighted, config = job
    if arch is not None:
        aot.driver.set_active(aot._Target(arch))
    triton_common.compile_arch = arch or 10 * torch.cuda.get_device_capability()[0]
    triton_common.compile_hook = lambda function, arguments, options: function.warmup(*arguments, grid=(1,), **options)
    try:
        with forced(kernel, config):
            aot._attention(DTYPE, HEAD_DIM, 196, weighted, weighted, aligned=True, dlse=False)
    except Exception as error:  # too much shared memory, say: a candidate that does not exist
        return f"{kernel} {config}: {timing.reason(error)}"
    finally:
        triton_common.compile_hook = None
    return ""


def compile_all(arch: int | None, processes: int) -> None:
    """All configurations, in several processes."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for problem in pool.map(partial(compile_one, arch), jobs()):
            if problem:
                print(f"left out: {problem}", flush=True)


# ---- timing


def calls_of(kernel: str, weighted: bool, buffers: Sequence[Buffers]) -> list[Callable[[], Sequence[Tensor]]]:
    """The launcher of one kernel on each set of buffers; the backward ones have what the forward pass leaves."""
    calls: list[Callable[[], Sequence[Tensor]]] = []
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


def results_of(kernel: str, returned: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of what a launcher returns, what this kernel has written."""
    return {"fwd": returned, "dq": returned[:1], "dkv": returned[1:]}[kernel]


def time_one(kernel: str, config: Config, calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Seconds of one launch, several samples."""
    device = torch.device("cuda")
    with forced(kernel, config):
        calls[0]()
        graph, _ = timing.capture([call for _ in range(max(1, 8 // len(calls))) for call in calls])
    launches = max(1, 8 // len(calls)) * len(calls)
    samples = common.interleave({"": graph.replay}, device, seconds, sample_seconds=1e-3)[""]
    del graph
    torch.cuda.empty_cache()  # of its results, which no other graph could use
    return [sample / launches for sample in samples]


def measure(workload: Workload, deadline: float, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one workload, until the deadline."""
    device = torch.device("cuda")
    sets = rotations(workload.bytes(False, 2), timing.cache_bytes(device))
    buffers = [Buffers(workload, DTYPE, device, seed) for seed in range(sets)]
    rows: list[dict[str, Any]] = []
    expected: dict[tuple[str, bool], list[Tensor]] = {}
    calls: dict[tuple[str, bool], list[Callable[[], Sequence[Tensor]]]] = {}
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
            worst = max(relative_error(a, b, None) for a, b in zip(actual, expected[key], strict=True))
            if not worst < MAX_ERROR:
                print(f"left out: {workload.name} {kernel} {config}: differs by {worst:.3g}", flush=True)
                continue
            samples = time_one(kernel, config, calls[key], 0.004)
        except Exception as error:
            if timing.is_fatal(error):
                raise
            print(f"left out: {workload.name} {kernel} {config}: {timing.reason(error)}", flush=True)
            continue
        row = {"bench": "gpu_tune", "workload": workload.name, "kernel": kernel, "weighted": weighted}
        row |= {"maxnreg": None} | config
        row |= {"usual": config == usual, "p50_us": common.quantiles(samples)["p50"] * 1e6, "samples": len(samples)}
        rows.append(row | facts)
    return rows


def print_best(rows: Sequence[dict[str, Any]]) -> None:
    """For each workload and kernel the three fastest and the one in use."""
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for everything (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the CSV; none is written where not given")
    parser.add_argument("--processes", type=int, default=12, help="that compile (default: %(default)s)")
    parser.add_argument("--compile-only", type=int, metavar="ARCH", help="only compile, for this compute capability")
    arguments = parser.parse_args(argv)
    deadline = time.perf_counter() + arguments.seconds
    compile_all(arguments.compile_only, arguments.processes)
    if arguments.compile_only:
        return
    print(f"compiled {len(jobs())} configurations, {deadline - time.perf_counter():.0f} s left", flush=True)
    device = common.find_device("cuda")
    facts = common.facts(device)
    by_name = {each.name: each for each in gpu_workloads() if each.head_dim == HEAD_DIM}
    rows: list[dict[str, Any]] = []
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        for name in WORKLOADS:
            if time.perf_counter() > deadline:
                break
            found = measure(by_name[name], deadline, facts)
            print_best(found)
            rows += found
            if arguments.output is not None:
                common.write_csv(arguments.output / "tune.csv", rows)


if __name__ == "__main__":
    main()
