"""The project's performance targets for an H100 or H200, and whether the rows of a report meet them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.attention.workloads import HEADLINE
from bench.rows import Row, latency_rows, read_rows

SHORT, LONG = (HEADLINE, "512 x 49", "256 x 196"), ("57 x 576", "32 x 1024")


@dataclass(frozen=True)
class Target:
    """A performance target of the project.

    Attributes:
        what: name of the figure.
        wanted: bound of the figure.
        unit: unit of the figure.
        at_most: whether the bound is an upper bound, as for a time.
        measured: measured value; None if no row has it.
        detail: remark for the table.
    """

    what: str
    wanted: float
    unit: str
    at_most: bool
    measured: float | None
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bound holds; None if nothing was measured."""
        if self.measured is None:
            return None
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted

    def cells(self) -> list[str]:
        """Cells of a table: name, target, measured value, verdict."""
        sign = "<=" if self.at_most else ">="
        measured = "not measured" if self.measured is None else f"{self.measured:.2f} {self.unit}"
        verdict = {None: "-", True: "met", False: "NOT MET"}[self.met]
        return [self.what, f"{sign} {self.wanted:g} {self.unit}", measured, f"{verdict} {self.detail}".strip()]


def all_targets(folder: Path) -> list[Target]:
    """Every target, judged by the CSV rows of a folder."""
    attention = read_rows(folder / "attention.csv")
    return [
        *_attention_targets(attention),
        *_latency_targets(latency_rows(folder)),
        *_operator_targets(read_rows(folder / "token_operators.csv"), read_rows(folder / "train_step.csv")),
        _host_target(attention),
    ]


def _attention_targets(attention: Sequence[Row]) -> list[Target]:
    targets = []
    for workload in SHORT:
        for direction, ratio in (("fwd", 1.6), ("bwd", 2.5)):
            best = best_of_ours(attention, workload, direction)
            name = f"attention {direction}, {workload}" + ", key-weight gradient" * (direction == "bwd")
            share = _number(best, "share_of_copy")
            targets.append(Target(f"{name}: share of the copy ceiling", 0.75, "", False, share, _by(best)))
            times = _number(best, "graph_times_varlen_attn")
            targets.append(Target("  against torch's best packed", ratio, "x", False, times, _by(best)))
    for workload in LONG:
        for direction in ("fwd", "bwd"):
            best = best_of_ours(attention, workload, direction)
            times = against_best_peer(attention, workload, direction, best)
            name = f"attention {direction}, {workload}, against the best peer"
            targets.append(Target(name, 1, "x", False, times, _by(best)))
    return targets


def _latency_targets(latency: Sequence[Row]) -> list[Target]:
    wanted = {"wanted_tokens": "98", "batch": "256"}
    packed = find(latency, method="packed compiled graph", **wanted) or find(latency, method="packed graph", **wanted)
    name = "packed MSViT-S, 98 tokens, batch 256, compiled, CUDA graph, against the compiled ViT-S"
    single = [
        row for row in latency if "packed" in row["method"] and (row["wanted_tokens"], row["batch"]) == ("98", "1")
    ]
    fastest = min(single, key=lambda row: float(row["all_p50_ms"]), default=None)
    return [
        Target(name, 1.9, "x", False, _number(packed, "times_compiled")),
        Target("  the same at batch 1", 0.5, "ms", True, _number(fastest, "all_p50_ms"), _by(fastest)),
    ]


def _operator_targets(operators: Sequence[Row], steps: Sequence[Row]) -> list[Target]:
    embed = find(operators, operator="mixed_scale_embed", method="triton", images="uint8", direction="fwd")
    step = find(steps, method="packed", target="0.1")
    name = "embedding against gather and product by torch"
    return [
        Target(name, 2, "x", False, _number(embed, "times_best_torch")),
        Target("training step, packed against masked", 2, "x", False, _number(step, "times_masked")),
        Target("  against the plain ViT", 1, "x", False, _number(step, "times_plain")),
    ]


def _host_target(attention: Sequence[Row]) -> Target:
    host = [row for row in attention if row["ours"] == "True" and row.get("host_us") and "+" not in row["method"]]
    best = min(host, key=lambda row: float(row["host_us"]), default=None)
    return Target("host cost of a call without gradient", 8, "us", True, _number(best, "host_us"), _by(best))


def best_of_ours(rows: Sequence[Row], workload: str, direction: str, head_dim: str = "64") -> Row | None:
    """Our fastest backend; in the backward pass, with the gradient of the key weight."""
    mine = [
        row
        for row in rows
        if (row["workload"], row["head_dim"], row["direction"], row["ours"]) == (workload, head_dim, direction, "True")
        and ("+ key weight" in row["method"]) == (direction == "bwd")
    ]
    return min(mine, key=_graph_or_eager, default=None)


def against_best_peer(rows: Sequence[Row], workload: str, direction: str, mine: Row | None) -> float | None:
    """Time of the fastest exact peer divided by ours, both as graphs if both have one."""
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
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def _graph_or_eager(row: Row) -> float:
    return float(row.get("graph_p50_us") or row["eager_p50_us"])


def _number(row: Row | None, column: str) -> float | None:
    return float(row[column]) if row and row.get(column) else None


def _by(row: Row | None) -> str:
    return f"({row['method'].removesuffix(' + key weight')})" if row else ""
