"""Runs every operator of every backend once, forward and backward, on small shapes, and checks it against fp64.

    python -m bench.gpu_report.small_shapes --device cuda --jobs cuda-attention-64 --json kernels.jsonl
    compute-sanitizer --tool memcheck python -m bench.gpu_report.small_shapes --device cuda

A job is one operator of one backend on shapes that select certain kernels (`--list`). Results are compared with the
reference on the CPU, which launches nothing on a GPU, and carry the name of the kernel that computed them. With --json,
each result is written as a line as soon as it is known. Inputs are made on the CPU too.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from bench.command_line import DTYPES, add_device, make_parser, short_name
from bench.failures import reason
from bench.gpu_report.small_jobs import Job, jobs, supported
from bench.machine import find_device
from msvit_kernels import testing


def run(job: Job, dtype: torch.dtype, device: torch.device, lines: Path | None) -> tuple[int, list[str]]:
    """Number of correct results, and the errors of the others; each result adds a line to `lines`, if that is given."""
    cpu = torch.device("cpu")
    oracle = dict(job.results("reference", torch.float64, cpu))
    eager = dict(job.results("reference", dtype, cpu))
    right, wrong = 0, []
    begin = time.perf_counter()
    for name, value in job.results(job.backend, dtype, device):
        error = ""
        try:
            exact = oracle[name]
            finite = exact[exact.isfinite()]
            summand = float(finite.detach().abs().max()) if finite.numel() else 1.0
            testing.assert_accurate(f"{job.name} {name}", value.detach().cpu(), eager[name], exact, summand=summand)
            right += 1
        except AssertionError as failure:
            error = str(failure)
            wrong.append(error)
        if lines is not None:
            seconds = time.perf_counter() - begin
            kernel = f"{job.backend} {job.kernels.get(name, '')}".strip()
            row = {"job": job.name, "kernel": kernel, "result": name, "dtype": short_name(dtype), "ok": not error}
            append(lines, row | {"error": error, "seconds": round(seconds, 3)})
    return right, wrong


def append(lines: Path, row: Mapping[str, object]) -> None:
    """Appends a row in a single write, because several processes write to the file."""
    with lines.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_device(parser)
    parser.add_argument("--backend", help="backend of the table (default: all that run here)")
    parser.add_argument("--jobs", help="names of jobs, separated by commas (default: all)")
    parser.add_argument("--dtypes", help="bf16, fp16, fp32, separated by commas (default: bf16 on a GPU, else fp32)")
    parser.add_argument("--json", type=Path, help="file that gets a line for each result")
    parser.add_argument("--list", action="store_true", help="only print the names of the jobs that run here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the chosen jobs and returns the number of wrong results."""
    arguments = _parse(argv)
    device = find_device(arguments.device)
    default = "bf16" if device.type == "cuda" else "fp32"
    dtypes = [DTYPES[name] for name in (arguments.dtypes or default).split(",")]
    chosen = [job for job in jobs() if arguments.backend in (None, job.backend)]
    if arguments.jobs:
        wanted = arguments.jobs.split(",")
        if unknown := set(wanted) - {job.name for job in chosen}:
            sys.exit(f"error: --jobs: unknown {', '.join(sorted(unknown))}")
        chosen = [job for job in chosen if job.name in wanted]
    failures = 0
    for job in chosen:
        for dtype in dtypes:
            if not supported(job, dtype, device):
                continue
            if arguments.list:
                print(job.name)
                break
            label = f"{job.name} {short_name(dtype)}"
            try:
                right, wrong = run(job, dtype, device, arguments.json)
            except Exception as error:  # the next job may still say something
                right, wrong = 0, [reason(error)]
                if arguments.json is not None:
                    row = {"job": job.name, "kernel": "", "result": "", "dtype": short_name(dtype), "ok": False}
                    append(arguments.json, row | {"error": wrong[0], "seconds": None})
            if not wrong:
                print(f"ok {label}: {right} results", flush=True)
            failures += len(wrong)
            for text in wrong:
                print(f"FAILED {label}: {text}", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
