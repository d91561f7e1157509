"""CSV rows of the report's part on attention, and a line for each."""

from typing import Any

import torch

from bench import graphs
from bench.attention.workloads import Workload
from bench.command_line import short_name
from bench.gpu_report.preparation import WEIGHTED
from bench.peers import PEERS, VARLEN_ATTN, is_exact
from bench.roofline import Roofline
from bench.timing import median

Row = dict[str, Any]


def make_row(workload: Workload, backward: bool, name: str, times: graphs.Times, dtype: torch.dtype, sets: int) -> Row:
    """The row of one method in one direction, without shares and ratios; `sets` is the number of buffer sets."""
    peer = next((peer for peer in PEERS if peer.name == name), None)
    best = median(times.best)
    moved = workload.bytes(backward, dtype.itemsize, name.endswith(WEIGHTED))
    return {
        "bench": "gpu_attention", "workload": workload.name, "head_dim": workload.head_dim,
        "num_heads": workload.num_heads, "tokens": workload.total, "direction": "bwd" if backward else "fwd",
        "dtype": short_name(dtype), "method": name, "ours": peer is None,
        "exact": peer is None or is_exact(peer, workload.lengths), "note": peer.note if peer else "",
        "buffer_sets": sets, **graphs.columns(times),
        "gb_s": moved / best / 1e9, "tflop_s": workload.flop(backward) / best / 1e12,
        "least_bytes": moved, "flop": workload.flop(backward),
    }  # fmt: skip


def finished(rows: list[Row], ceilings: Roofline, facts: dict[str, Any]) -> list[Row]:
    """The rows with their shares of the ceilings and their ratios to the peers of the same workload and direction."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_group(row), []).append(row)
    return [
        row | _shares(row, ceilings) | _ratios(row, groups[_group(row)]) | ceilings.columns() | facts for row in rows
    ]


def _group(row: Row) -> tuple[Any, ...]:
    return row["workload"], row["head_dim"], row["direction"]


def _shares(row: Row, ceilings: Roofline) -> Row:
    floor_us = ceilings.floor_us(row["least_bytes"], row["flop"])
    best = row.get("graph_p50_us") or row["eager_p50_us"]
    return {
        "floor_us": floor_us, "share_of_floor": floor_us / best,
        "share_of_copy": row["gb_s"] / ceilings.copy_gb_s,
        "share_of_matmul": row["tflop_s"] * 1e3 / ceilings.peak_gflop_s,
    }  # fmt: skip


def _ratios(row: Row, group: list[Row]) -> Row:
    found: Row = {}
    for kind in ("graph", "eager"):
        column = f"{kind}_p50_us"
        found |= {f"{kind}_times_{name}": None for name in ("best_peer", "varlen_attn")}
        peer_rows = [each for each in group if not each["ours"] and each["exact"] and each.get(column)]
        if peer_rows and row.get(column):
            winner = min(peer_rows, key=lambda each: each[column])
            found |= {f"{kind}_best_peer": winner["method"]}
            found |= {f"{kind}_times_best_peer": winner[column] / row[column]}
            torch_times = [each[column] for each in peer_rows if each["method"] in VARLEN_ATTN]
            if torch_times:
                found |= {f"{kind}_times_varlen_attn": min(torch_times) / row[column]}
    return found


def line(row: Row) -> str:
    """A finished row as a line of text."""
    times = row.get("graph_p50_us") or row["eager_p50_us"]
    ratio = row["graph_times_best_peer"] or row["eager_times_best_peer"]
    return (
        f"{row['workload']:>27} d{row['head_dim']:<3} {row['direction']} {row['method']:<22} {times:9.1f} us "
        f"{row['gb_s']:7.0f} GB/s {row['tflop_s']:6.1f} TFLOP/s {row['share_of_floor']:4.0%} of floor"
        + (f" {ratio:5.2f}x best peer" if ratio else "")
    )
