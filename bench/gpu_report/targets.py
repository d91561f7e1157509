"""The figures that the project set itself for an H100 or H200, and whether the rows of a report reach them."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu.workloads import HEADLINE

SHORT, LONG = (HEADLINE, "512 x 49", "256 x 196"), ("57 x 576", "32 x 1024")
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


def latency_rows(folder: Path) -> list[Row]:
    """Rows of every latency_bf16*.csv; the newest if a method was timed again with the same tokens and batch."""
    rows = [row for path in sorted(folder.glob("latency_bf16*.csv")) for row in read(path)]
    rows.sort(key=lambda row: row["date"])
    return list({(row["method"], row["wanted_tokens"], row["batch"]): row for row in rows}.values())


def commits(rows: Sequence[Row]) -> str:
    """Every commit that rows come from, in the order of their dates."""
    return ", ".join(dict.fromkeys(row["commit"] for row in sorted(rows, key=lambda row: row["date"])))


def all_targets(folder: Path) -> list[Target]:
    """Every target, judged by the CSV rows of a folder."""
    attention = read(folder / "attention.csv")
    targets = []
    for workload in SHORT:
        for direction, ratio in (("fwd", 1.6), ("bwd", 2.5)):
            best = best_of_ours(attention, workload, direction)
            name = f"attention {direction}, {workload}" + ", key-weight gradient" * (direction == "bwd")
            targets.append(
                Target(f"{name}: share of the copy ceiling", 0.75, "", False, _number(best, "share_of_copy"), _by(best))
            )
            times = _number(best, "graph_times_varlen_attn")
            targets.append(Target("  against torch's best packed", ratio, "x", False, times, _by(best)))
    for workload in LONG:
        for direction in ("fwd", "bwd"):
            best = best_of_ours(attention, workload, direction)
            times = against_best_peer(attention, workload, direction, best)
            targets.append(
                Target(f"attention {direction}, {workload}, against the best peer", 1, "x", False, times, _by(best))
            )
    latency = latency_rows(folder)
    for method in ("packed compiled graph", "packed graph"):
        packed = find(latency, method=method, wanted_tokens="98", batch="256")
        if packed:
            break
    name = "packed MSViT-S, 98 tokens, batch 256, compiled, CUDA graph, against the compiled ViT-S"
    targets.append(Target(name, 1.9, "x", False, _number(packed, "times_compiled")))
    single = [
        row for row in latency if "packed" in row["method"] and (row["wanted_tokens"], row["batch"]) == ("98", "1")
    ]
    fastest = min(single, key=lambda row: float(row["all_p50_ms"]), default=None)
    targets.append(Target("  the same at batch 1", 0.5, "ms", True, _number(fastest, "all_p50_ms"), _by(fastest)))
    operators = read(folder / "token_operators.csv")
    embed = find(operators, operator="mixed_scale_embed", method="triton", images="uint8", direction="fwd")
    targets.append(
        Target("embedding against gather and product by torch", 2, "x", False, _number(embed, "times_best_torch"))
    )
    step = find(read(folder / "train_step.csv"), method="packed", target="0.1")
    targets.append(Target("training step, packed against masked", 2, "x", False, _number(step, "times_masked")))
    targets.append(Target("  against the plain ViT", 1, "x", False, _number(step, "times_plain")))
    host = [row for row in attention if row["ours"] == "True" and row.get("host_us") and "+" not in row["method"]]
    best = min(host, key=lambda row: float(row["host_us"]), default=None)
    targets.append(Target("host cost of a call without gradient", 8, "us", True, _number(best, "host_us"), _by(best)))
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


def against_best_peer(rows: Sequence[Row], workload: str, direction: str, mine: Row | None) -> float | None:
    """Time of the fastest peer that does the same work over ours, both as graphs where both have one."""
    if mine is None:
        return None
    for column in ("graph_p50_us", "eager_p50_us"):
        times = [
            float(row[column])
            for row in rows
            if (row["workload"], row["head_dim"], row["direction"]) == (workload, mine["head_dim"], direction)
            and (row["ours"], row["exact"]) == ("False", "True") and row.get(column)
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
