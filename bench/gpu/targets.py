"""The figures that the project set itself for an H200, and whether the rows of a report reach them."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu.workloads import HEADLINE

Row = dict[str, str]


@dataclass(frozen=True)
class Target:
    """`measured` is None where no row says it; `at_most` tells a time from a ratio."""

    what: str
    wanted: float
    unit: str
    at_most: bool
    measured: float | None
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """None where nothing was measured."""
        if self.measured is None:
            return None
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted

    def cells(self) -> list[str]:
        """For a table: what, target, measured, verdict."""
        sign = "<=" if self.at_most else ">="
        measured = "not measured" if self.measured is None else f"{self.measured:.2f} {self.unit}"
        verdict = {None: "-", True: "met", False: "NOT MET"}[self.met]
        return [self.what, f"{sign} {self.wanted:g} {self.unit}", measured, f"{verdict} {self.detail}".strip()]


def read(path: Path) -> list[Row]:
    """Rows of a CSV; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def all_targets(folder: Path) -> list[Target]:
    """Every target, judged by the CSV rows of a folder."""
    attention = read(folder / "attention.csv")
    latency = read(folder / "latency_bf16.csv")
    steps = read(folder / "train_step.csv")
    targets = []
    for direction, microseconds, ratio in (("fwd", 32, 1.6), ("bwd", 64, 2.5)):
        best = best_of_ours(attention, HEADLINE, direction)
        name = f"attention {direction}, {HEADLINE} x 6 heads of 64" + ", key-weight gradient" * (direction == "bwd")
        targets.append(Target(name, microseconds, "us", True, _number(best, "graph_p50_us"), _by(best)))
        times = _number(best, "graph_times_varlen_attn")
        targets.append(Target("  against torch varlen_attn", ratio, "x", False, times, _by(best)))
    for workload in ("57 x 576", "32 x 1024"):
        for direction in ("fwd", "bwd"):
            best = best_of_ours(attention, workload, direction)
            times = against(attention, workload, direction, best, ("varlen_attn", "sdpa padded cudnn", "cudnn thd"))
            name = f"attention {direction}, {workload}, against the best of cuDNN and varlen_attn"
            targets.append(Target(name, 0.95, "x", False, times, _by(best)))
    packed = find(latency, method="packed graph", wanted_tokens="98", batch="256")
    name = "packed MSViT-S, 98 tokens, batch 256, CUDA graph, against the compiled ViT-S"
    targets.append(Target(name, 1.9, "x", False, _number(packed, "times_compiled")))
    step = find(steps, method="packed", target="0.1")
    targets.append(Target("training step, packed against masked", 2, "x", False, _number(step, "times_masked")))
    host = [row for row in attention if row["ours"] == "True" and row.get("host_us") and "+" not in row["method"]]
    best = min(host, key=lambda row: float(row["host_us"]), default=None)
    targets.append(Target("host cost of a call without gradient", 15, "us", True, _number(best, "host_us"), _by(best)))
    return targets


def best_of_ours(rows: Sequence[Row], workload: str, direction: str, head_dim: str = "64") -> Row | None:
    """Our fastest backend, in the backward pass with the gradient of the key weight."""
    mine = [
        row
        for row in rows
        if (row["workload"], row["head_dim"], row["direction"], row["ours"]) == (workload, head_dim, direction, "True")
        and ("+ key weight" in row["method"]) == (direction == "bwd")
    ]
    return min(mine, key=_graph_or_eager, default=None)


def against(rows: Sequence[Row], workload: str, direction: str, mine: Row | None, peers: Sequence[str]) -> float | None:
    """Time of the fastest of some peers over ours, both as graphs where both have one."""
    if mine is None:
        return None
    for column in ("graph_p50_us", "eager_p50_us"):
        times = [
            float(row[column])
            for row in rows
            if (row["workload"], row["head_dim"], row["direction"]) == (workload, mine["head_dim"], direction)
            and row["method"] in peers and row["exact"] == "True" and row.get(column)
        ]  # fmt: skip
        if times and mine.get(column):
            return min(times) / float(mine[column])
    return None


def find(rows: Sequence[Row], **wanted: str) -> Row | None:
    """The first row with these values."""
    matches: Callable[[Row], bool] = lambda row: all(row.get(key) == value for key, value in wanted.items())  # noqa: E731
    return next((row for row in rows if matches(row)), None)


def _graph_or_eager(row: Row) -> float:
    return float(row.get("graph_p50_us") or row["eager_p50_us"])


def _number(row: Row | None, column: str) -> float | None:
    return float(row[column]) if row and row.get(column) else None


def _by(row: Row | None) -> str:
    return f"({row['method'].removesuffix(' + key weight')})" if row else ""
