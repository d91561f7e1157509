"""Time and peak memory of a training step: masked, trimmed and packed mixed-scale tokens, and the plain ViT.

    python bench/train_step.py --target 0.1

A step is forward pass, cross-entropy and gate loss, backward pass into backbone and gate, and optimizer step. The
learned gate makes a share of `--target` of the regions fine, sampled at every step, with the threshold policy, as in
training. The plain ViT gets all fine tokens. On a GPU the models run under bf16 autocast. Methods take turns. Peak
memory is the memory of a step beyond the weights and the optimizer's state; on a CPU it is measured by the process's
resident size.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bench.command_line import add_device, add_output, make_console, make_parser
from bench.failures import errors_in_one_line
from bench.machine import facts, find_device, results_dir
from bench.memory import peak_megabytes
from bench.rows import write_rows
from bench.timing import QUANTILES, interleave, quantiles
from bench.vit.trainers import Trainer, check, make_trainers


def measure(trainers: list[Trainer], seconds: float, device: torch.device) -> list[dict[str, Any]]:
    """CSV rows of all trainers, which take turns."""
    memory = {}
    for trainer in trainers:
        trainer.optimizer.zero_grad(set_to_none=True)
        memory[trainer.name] = peak_megabytes(trainer.step, device)
    samples = interleave({trainer.name: trainer.step for trainer in trainers}, device, seconds)
    times = {name: quantiles(values) for name, values in samples.items()}
    known = facts(device)
    rows = []
    for trainer in trainers:
        name, batch = trainer.name, len(trainer.images)
        time = times[name]
        row: dict[str, Any] = {"bench": "train_step", "method": name, "batch": batch, "tokens": trainer.tokens()}
        row |= {"samples": len(samples[name])} | {f"step_{q}_ms": value * 1e3 for q, value in time.items()}
        row |= {"images_per_s": batch / time["p50"], "peak_mb": memory[name]}
        for other in ("masked", "plain"):
            row[f"times_{other}"] = times[other]["p50"] / time["p50"]
        rows.append(row | known)
    return rows


def print_table(rows: list[dict[str, Any]], console: Console) -> None:
    """Prints the rows."""
    first = rows[0]
    console.print(
        f"\nTraining step of {first['model']} on {first['machine']} ({first['threads']} threads, {first['dtype']}), "
        f"batch {first['batch']}, target {first['target']}, {first['optimizer']}; torch {first['torch']}"
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("method", no_wrap=True)
    for head in ("tokens", "ms per step", "p20-p80", "images/s", "× masked", "× plain", "peak MB"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        low, middle, high = (row[f"step_p{q}_ms"] for q in QUANTILES)
        cells = [f"{row['tokens']:.1f}", f"{middle:.1f}", f"{low:.1f}-{high:.1f}", f"{row['images_per_s']:.1f}"]
        cells += [f"{row['times_masked']:.2f}", f"{row['times_plain']:.2f}"]
        table.add_row(row["method"], *cells, "?" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}")
    console.print(table)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="msvit_small_patch16_32_224", help="default: %(default)s")
    parser.add_argument("--batch", type=int, help="images of a step (default: 256 on a GPU, 8 on a CPU)")
    parser.add_argument("--target", type=float, default=0.1, help="share of fine regions (default: %(default)s)")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="default: %(default)s")
    add_device(parser)
    parser.add_argument("--seconds", type=float, default=60, help="time limit of measuring (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rounds: a smoke test")
    add_output(parser, "CSV file", "bench/results/<device>; none with --quick")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.model, arguments.batch, arguments.seconds = "msvit_tiny_patch16_32_64", 2, 0.1
    return arguments


def run(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Builds, checks and times the trainers, then writes the CSV and the table.

    Raises:
        ValueError: an argument that cannot be used.
        RefusalError: the token modes disagree, or the task does not train the gate.
    """
    device = find_device(arguments.device)
    batch = (256 if device.type == "cuda" else 8) if arguments.batch is None else arguments.batch
    if batch < 2:
        raise ValueError(f"--batch: expected 2 or more, got {batch}")
    if not 0 < arguments.target < 1:
        raise ValueError(f"--target: expected a share inside (0, 1), got {arguments.target}")
    trainers = make_trainers(arguments.model, batch, arguments.target, arguments.optimizer, device)
    check(trainers)
    rows = measure(trainers, arguments.seconds, device)
    dtype = "bf16 autocast" if device.type == "cuda" else "fp32"
    fields = {"model": arguments.model, "target": arguments.target, "optimizer": arguments.optimizer, "dtype": dtype}
    rows = [{"bench": row.pop("bench")} | fields | row for row in rows]
    print_table(rows, console)
    output = arguments.output or (None if arguments.quick else results_dir(device))
    if output is not None:
        write_rows(output / "train_step.csv", rows)
        console.print(f"wrote {output / 'train_step.csv'}")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the bench."""
    arguments = parse_arguments(argv)
    with errors_in_one_line():
        run(arguments, make_console())


if __name__ == "__main__":
    main()
