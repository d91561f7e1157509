"""Hardware counters of our attention kernels at the headline shape, by Nsight Compute.

ncu ... python -m bench.gpu_report.ncu    launches the kernels that are profiled
"""

import csv
import re
from typing import Any

import torch

from bench.attention.workloads import Buffers, gpu_workloads
from bench.gpu_report import commands
from bench.machine import facts, find_device
from msvit_kernels import testing, varlen_attention

SECTIONS = ("SpeedOfLight", "Occupancy", "WarpStateStats", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis",
            "LaunchStats")  # fmt: skip
METRICS = "dram__bytes_read.sum,dram__bytes_write.sum"  # in none of the sections
# Name in our table, and pattern of ncu's columns.
COLUMNS = {
    "time_us": r"gpu__time_duration\.sum",
    "dram_read_mb": r"dram__bytes_read\.sum",
    "dram_write_mb": r"dram__bytes_write\.sum",
    "dram_share": r"(gpu__dram_throughput|dram__throughput)\.avg\.pct_of_peak_sustained_elapsed",
    "occupancy": r"sm__warps_active\.avg\.pct_of_peak_sustained_active",
    "tensor_share": r"sm__(inst_executed_)?pipe_tensor.*pct_of_peak_sustained_(active|elapsed)",
    "registers": r"launch__registers_per_thread",
}
_STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+?)(_not_issued)?_per_issue_active\.ratio")
_BYTES = {"byte": 1e-6, "kbyte": 1e-3, "mbyte": 1.0, "gbyte": 1e3, "b": 1e-6, "kb": 1e-3, "mb": 1.0, "gb": 1e3}
_TIME = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3, "second": 1e6, "s": 1e6}


def collect(limit: float) -> tuple[commands.Result, list[dict[str, Any]]] | None:
    """Rows of counters, one for each kernel launch; None if ncu is not installed."""
    program = commands.find("ncu")
    if program is None:
        return None
    sections = [word for section in SECTIONS for word in ("--section", section)]
    # The card's clocks are left as they are.
    command = [program, "--clock-control", "none", "--target-processes", "all", "--profile-from-start", "off"]
    command += [*sections, "--metrics", METRICS, "--page", "raw", "--csv", *commands.module("gpu_report.ncu")]
    result = commands.run(command, limit)
    known = facts(find_device(None))
    return result, [row | known for row in parse(result.output)]


def parse(output: str) -> list[dict[str, Any]]:
    """Rows from `ncu --page raw --csv`: a header, a line of units, and one line for each launch."""
    lines = output.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return []
    table = list(csv.reader(line for line in lines[first:] if line.startswith('"')))
    header, units, *launches = table
    return [_row(dict(zip(header, launch, strict=False)), dict(zip(header, units, strict=False)))
            for launch in launches]  # fmt: skip


def _row(values: dict[str, str], units: dict[str, str]) -> dict[str, Any]:
    # Without its argument list, and without the types of template arguments, such as (int)64.
    name = re.sub(r"\((?:unsigned )?(?:int|bool|long|char)\)", "", values.get("Kernel Name", "?"))
    row: dict[str, Any] = {"kernel": name.split("(")[0].removeprefix("void ")}
    for column_name, pattern in COLUMNS.items():
        found = [column for column in values if re.fullmatch(pattern, column)]
        numbers = [_number(values[column], units.get(column, "")) for column in found]
        known = [number for number in numbers if number is not None]
        row[column_name] = max(known) if known else None
    stalls = {
        match[1]: number
        for column in values
        if (match := _STALL.fullmatch(column)) and not match[2]
        and (number := _number(values[column], "")) is not None and match[1] != "selected"
    }  # fmt: skip
    top = sorted(stalls, key=lambda name: -stalls[name])[:4]
    row["stalls"] = ", ".join(f"{name} {stalls[name]:.2f}" for name in top)
    return row


def _number(text: str, unit: str) -> float | None:
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return None
    return number * (_BYTES | _TIME).get(unit.lower(), 1.0)


def main() -> None:
    """Runs our GPU backends forward and backward at the headline shape, once between marks for the profiler."""
    device = find_device("cuda")
    x = Buffers(gpu_workloads()[0], torch.bfloat16, device)
    for backend in testing.backends_for("varlen_attention", "cuda", x.dtype, head_dim=x.workload.head_dim):
        if backend == "reference":
            continue
        for profiled in (False, True):
            if profiled:
                torch.cuda.profiler.start()
            out = varlen_attention(x.q, x.k, x.v, x.offsets, x.workload.longest, key_weight=x.weight, backend=backend)
            torch.autograd.grad(out, [*x.leaves, x.weight], x.dout)
            torch.cuda.synchronize()
            if profiled:
                torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
