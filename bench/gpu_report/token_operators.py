"""Times the operators beside attention, every backend against eager and compiled torch; a part of bench/gpu_report.py.

    python bench/gpu/token_operators.py --seconds 60

Methods in torch are those of bench/bench_mixed_scale_embed.py and bench/bench_unpack_to_grid.py. Least bytes: images or
tokens read once, the result written once, for gradients what they read and write. Weights are small beside them.
"""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bench_mixed_scale_embed as embed
import bench_unpack_to_grid as unpack
import common
import torch
from gpu import timing
from gpu.attention import argument_parser
from gpu.workloads import rotations
from operators import check_baseline, gradients
from torch import Tensor

from msvit_kernels import mixed_scale_layout, testing, unpack_to_grid

Call = Callable[[], Any]
COMPILE_SECONDS = 25.0


@dataclass
class Case:
    """One operator in one direction.

    Attributes:
        fields: of the rows. methods: by name, one maker of a call for each set of buffers. check: judges a method by
        its name, or raises AssertionError. flop, bytes: needed at least. compiled: methods that take long to get ready.
    """

    fields: dict[str, Any]
    methods: dict[str, list[Callable[[], Call]]]
    check: Callable[[str, Call], None]
    bytes: float
    flop: float = 0
    compiled: tuple[str, ...] = field(default=())


def embed_case(shape: tuple[int, int, int], images: str, backward: bool, device: torch.device) -> Case:
    """`mixed_scale_embed` on uint8 or bf16 images: forward, or the gradients of weight, bias and table."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch, side, dim = shape
    first = embed.Inputs(batch, side, dim, images, dtype, device)
    moved = first.images.numel() * first.images.element_size() + first.dout.numel() * first.dout.element_size()
    sets = [first, *(embed.Inputs(batch, side, dim, images, dtype, device) for _ in range(_more(moved, device)))]
    compiled = torch.compile(embed.Inputs.gather, dynamic=False)

    def maker(call: Callable[[embed.Inputs], Tensor], x: embed.Inputs) -> Call:
        bound = partial(call, x)
        return gradients(bound, x.leaves, x.dout) if backward else bound

    calls: dict[str, Callable[[embed.Inputs], Tensor]] = {
        name: (lambda x, name=name: x.ours(name)[0])
        for name in _backends("mixed_scale_embed", device, dtype, images_dtype=first.images.dtype)
    }
    calls |= {"torch conv": embed.Inputs.conv, "torch gather": embed.Inputs.gather}
    if device.type == "cuda":
        calls["torch gather compiled"] = compiled
    results = _oracles(partial(embed._results, first, "reference", backward), dtype)

    def check(name: str, call: Call) -> None:
        actual = _tensors(call())
        eager, oracle = results()
        for what, *values in zip(("dweight", "dbias", "dtable") if backward else ("out",), actual, eager, oracle,
                                 strict=True):  # fmt: skip
            if name.startswith("torch"):
                check_baseline(f"{name} {what}", values[0], values[2])
            else:
                testing.assert_accurate(f"{name} {what}", *values)

    fields = {"operator": "mixed_scale_embed", "shape": f"{batch} x {side} px, dim {dim}", "images": images}
    return Case(
        fields | {"direction": "bwd" if backward else "fwd", "dtype": _name(dtype)},
        {name: [partial(maker, call, x) for x in sets] for name, call in calls.items()},
        check, float(moved), 6.0 * embed.PATCH**2 * dim * first.patches, ("torch gather compiled",),
    )  # fmt: skip


def unpack_case(shape: tuple[int, int, int], backward: bool, device: torch.device) -> Case:
    """`unpack_to_grid`, or its gradient."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch, coarse, dim = shape
    first = unpack.Inputs(batch, coarse, dim, dtype, device)
    moved = (first.tokens.numel() + first.dgrid.numel()) * first.tokens.element_size()
    sets = [first, *(unpack.Inputs(batch, coarse, dim, dtype, device) for _ in range(_more(moved, device)))]

    def maker(call: Callable[[unpack.Inputs], Tensor], x: unpack.Inputs) -> Call:
        bound = partial(call, x)
        return gradients(bound, [x.tokens], x.dgrid) if backward else bound

    calls: dict[str, Callable[[unpack.Inputs], Tensor]] = {
        name: (lambda x, name=name: unpack_to_grid(x.tokens, x.layout, backend=name))
        for name in _backends("unpack_to_grid", device, dtype)
    }
    calls |= {"torch index": unpack.Inputs.index, "torch gather": unpack.Inputs.gather}
    if device.type == "cuda":
        calls["torch index compiled"] = torch.compile(unpack.Inputs.index, dynamic=False)
    results = _oracles(lambda kind=dtype: [unpack._result(first, "reference", backward, kind)], dtype)

    def check(name: str, call: Call) -> None:
        (actual,) = _tensors(call())
        (eager,), (oracle,) = results()
        if name.startswith("torch"):
            check_baseline(name, actual, oracle)
        else:
            testing.assert_accurate(name, actual, eager, oracle)

    cells = coarse * unpack.SCALE
    fields = {"operator": "unpack_to_grid", "shape": f"{batch} x {dim} x {cells} x {cells}", "images": ""}
    return Case(
        fields | {"direction": "bwd" if backward else "fwd", "dtype": _name(dtype)},
        {name: [partial(maker, call, x) for x in sets] for name, call in calls.items()},
        check, float(moved), compiled=("torch index compiled",),
    )  # fmt: skip


def layout_case(batch: int, coarse: int, device: torch.device) -> Case:
    """`mixed_scale_layout` with the total given, as a budget does."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(batch, coarse, coarse, generator=generator) < 1 / 3).to(device)
    total = mixed_scale_layout(mask, backend="reference").total_tokens
    # Small: everything of it is in the cache, where the model has just put the mask.
    moved = mask.numel() * (1 + 4) + total * 8
    wanted = mixed_scale_layout(mask, backend="reference")

    def call(name: str) -> Call:
        return lambda: mixed_scale_layout(mask, total_tokens=total, backend=name)

    def check(name: str, each: Call) -> None:
        layout = each()
        for what in ("cu_seqlens", "num_tokens", "batch_index", "token_index", "region_start"):
            assert torch.equal(getattr(layout, what), getattr(wanted, what)), f"{name}: {what} differs"

    fields = {"operator": "mixed_scale_layout", "shape": f"{batch} x {coarse} x {coarse}", "images": ""}
    methods = {name: [partial(call, name)] for name in _backends("mixed_scale_layout", device, torch.bool)}
    return Case(fields | {"direction": "fwd", "dtype": "bool"}, methods, check, float(moved))


def cases(device: torch.device, quick: bool) -> list[Callable[[], Case]]:
    """In the order of their importance."""
    if quick or device.type == "cpu":
        batch, side, dim = 2, 64, 48
    else:
        batch, side, dim = 256, 224, 384
    coarse = side // (embed.PATCH * embed.SCALE)
    made = [partial(embed_case, (batch, side, dim), "uint8", False, device)]
    made += [partial(embed_case, (batch, side, dim), "uint8", True, device)]
    made += [partial(unpack_case, (batch, coarse, dim), backward, device) for backward in (False, True)]
    made += [partial(layout_case, batch, coarse, device)]
    made += [partial(embed_case, (batch, side, dim), "float", backward, device) for backward in (False, True)]
    return made


def _oracles(make: Callable[..., Any], dtype: torch.dtype) -> Callable[[], tuple[list[Tensor], list[Tensor]]]:
    kept: list[tuple[list[Tensor], list[Tensor]]] = []

    def results() -> tuple[list[Tensor], list[Tensor]]:
        if not kept:
            with torch.enable_grad():
                kept.append((list(make(dtype)), list(make(torch.float64))))
        return kept[0]

    return results


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _backends(operator: str, device: torch.device, dtype: torch.dtype, **details: Any) -> list[str]:
    found = testing.backends_for(operator, device.type, dtype, **details)
    return [name for name in found if device.type == "cuda" or name not in ("triton", "cuda")]  # emulated


def _more(moved: float, device: torch.device) -> int:
    """Further sets of buffers beside the first."""
    if device.type == "cpu":
        return 1
    return rotations(moved, timing.cache_bytes(device)) - 1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- the part


def run(device: torch.device, seconds: float, quick: bool, output: Path | None) -> tuple[list[dict[str, Any]], int]:
    """All cases until the time is over: rows, and how many methods of ours are wrong."""
    deadline = time.perf_counter() + seconds
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ceilings = common.Roofline.measure(device, dtype, 0.1 if quick else 1.0)
    facts = common.facts(device)
    rows: list[dict[str, Any]] = []
    failures = 0
    made = cases(device, quick)
    for index, make in enumerate(made):
        if index and time.perf_counter() > deadline - 1:
            print(f"left out: the time was over before the last {len(made) - index} cases")
            break
        case = make()
        calls, wrong = _ready(case, deadline)
        failures += wrong
        with torch.no_grad():
            share = min(1.5, 0.2 * seconds / len(made))
            times = timing.time_methods(calls, device, 0.1 if quick else share)
        rows += _rows(case, times, ceilings, facts)
        if output is not None:
            common.write_csv(output / "token_operators.csv", rows)
    return rows, failures


def _ready(case: Case, deadline: float) -> tuple[dict[str, list[Call]], int]:
    """The calls that are right; those that are not are named, and counted where they are ours."""
    calls: dict[str, list[Call]] = {}
    failures = 0
    label = f"{case.fields['operator']} {case.fields['direction']} {case.fields['images']}".strip()
    for name, makers in case.methods.items():
        if name in case.compiled and time.perf_counter() > deadline - COMPILE_SECONDS:
            print(f"left out: {name}, {label}: no time to compile it")
            continue
        try:
            first = makers[0]()
            with torch.no_grad():
                case.check(name, first)
            calls[name] = [first, *(make() for make in makers[1:])]
            with torch.no_grad():
                for call in calls[name]:
                    call()
        except Exception as error:
            ours = not name.startswith("torch")
            failures += ours
            print(f"{'FAILED' if ours else 'left out:'} {name}, {label}: {timing.reason(error)}", flush=True)
            calls.pop(name, None)
            if timing.is_fatal(error):
                raise
    return calls, failures


def _rows(
    case: Case, times: dict[str, timing.Times], ceilings: common.Roofline, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    middles = {name: common.quantiles(each.best)["p50"] for name, each in times.items()}
    others = [middle for name, middle in middles.items() if name.startswith("torch") or name == "reference"]
    best = min(others, default=None)
    floor = max(case.bytes / ceilings.copy_gb_s / 1e9, case.flop / ceilings.peak_gflop_s / 1e9)
    rows = []
    for name, each in times.items():
        row = {"bench": "gpu_token_operators", **case.fields, "method": name, **timing.columns(each)}
        row |= {"graph_error": each.graph_error, "floor_us": floor * 1e6, "share_of_floor": floor / middles[name]}
        row |= {"gb_s": case.bytes / middles[name] / 1e9, "tflop_s": case.flop / middles[name] / 1e12}
        row["times_best_torch"] = best / middles[name] if best else None
        reference = middles.get("reference")
        row["times_reference"] = reference / middles[name] if reference else None
        rows.append(row | ceilings.columns() | facts)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    name = " ".join(str(row[key]) for key in ("operator", "images", "direction") if row[key])
    times = row.get("graph_p50_us") or row["eager_p50_us"]
    ratio = f" {row['times_best_torch']:5.2f}x best torch" if row["times_best_torch"] else ""
    return f"{name:<34} {row['method']:<22} {times:9.1f} us {row['gb_s']:7.0f} GB/s{ratio}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the part; 1 where a backend of ours is wrong."""
    arguments = argument_parser().parse_args(argv)
    device = common.find_device(arguments.device)
    with torch.cuda.stream(torch.cuda.Stream()) if device.type == "cuda" else nullcontext():
        rows, failures = run(device, arguments.seconds, arguments.quick, arguments.output)
    for row in rows:
        print(line(row))
    return 1 if failures or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
