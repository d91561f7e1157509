"""CSV rows of the finished runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.experiments.jobs import Job, run_name
from bench.experiments.study import Study
from bench.machine import facts
from bench.rows import read_rows, write_rows
from msvit.report.examined import examine
from msvit.training import Run, load_run


def collect(study: Study, waves: Sequence[Sequence[Job]], output: Path, device: torch.device) -> None:
    """Writes a CSV row for each finished run, in the order of the settings.

    Raises:
        ValueError: no run is finished, or the CSV has rows of runs that are not; the CSV stays as it is.
    """
    order = {setting.name: i for i, setting in enumerate(study.settings)}
    finished = sorted(
        (job for wave in waves for job in wave if job.is_finished()), key=lambda job: order[job.setting.name]
    )
    if not finished:
        raise ValueError(f"{output}: not written, as no run is finished")
    if lost := _recorded_runs(output) - {job.folder.name for job in finished}:
        names = ", ".join(sorted(lost))
        raise ValueError(
            f"{output}: not written, because it has rows of {names}, unfinished or beyond --seeds; remove it first"
        )
    known = facts(device)
    rows = []
    for job in finished:
        about = {"setting": job.setting.name, "about": job.setting.about, "seed": job.values["seed"]}
        rows.append({**about, **study.measure(load_run(job.folder), device), **known})
    write_rows(output, rows)


def _recorded_runs(path: Path) -> set[str]:
    """Names of the runs in a CSV; none if there is no CSV."""
    return {run_name(row["setting"], row["seed"]) for row in read_rows(path)}


def measure(run: Run, device: torch.device) -> dict[str, Any]:
    """Columns of a run of the digits."""
    (group,) = examine([run], device, latency_seconds=0.0)
    evaluation, coverage = group.runs[0].evaluation, group.runs[0].coverage
    assert coverage is not None  # the place of every digit is known
    config, last = run.config, run.metrics[-1]
    return {
        "image_size": run.image_size[0],
        "gate_target": config.gate_target,
        "epochs": config.epochs,
        "train_images": config.train_size,
        "test_images": len(evaluation.correct),
        "top1": evaluation.top1,
        "tokens_per_image": evaluation.tokens_per_image,
        "gmacs": evaluation.gmacs,
        "fine_share": evaluation.fine_share,
        "variance_over_images": float(evaluation.position_variance.mean()),
        "dynamics": evaluation.dynamics,
        "fine_on_digit": coverage.on_object,
        "fine_on_digit_by_chance": coverage.chance,
        "digit_found": coverage.found,
        "train_seconds": last["seconds"],
        "train_images_per_s": sum(row["images_per_s"] for row in run.metrics) / len(run.metrics),
    }
