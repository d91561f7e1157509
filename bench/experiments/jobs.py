"""Training runs: a setting with a seed, and the order in which runs depend on one another."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.experiments.settings import Setting
from bench.experiments.study import Study
from msvit.training import Config, load_run, make_config


@dataclass(frozen=True)
class Job:
    """One setting with one seed.

    Attributes:
        setting: the setting.
        preset: preset of `msvit train`.
        folder: folder of the run.
        values: values of `msvit.training.Config` beyond the preset.
        gate_run: run whose gate this one takes over, frozen; if None, it has its own.
    """

    setting: Setting
    preset: str
    folder: Path
    values: dict[str, Any]
    gate_run: Path | None

    def config(self) -> Config:
        """The configuration of the run."""
        return make_config(self.preset, **self.values)

    def is_finished(self) -> bool:
        """Whether the run has all of its epochs, and a checkpoint of its last step.

        Raises:
            ValueError: there is a run of that name with other values.
        """
        if not (self.folder / "config.json").exists():
            return False
        run = load_run(self.folder)
        if run.config != self.config():
            mine, theirs = self.config().to_dict(), run.config.to_dict()
            names = ", ".join(name for name in mine if mine[name] != theirs[name])
            raise ValueError(f"{self.folder}: a run with other values of {names}; remove it, or give another --runs")
        if len(run.metrics) != run.config.epochs:
            return False
        try:  # the row of an epoch is written before its checkpoint
            return run.checkpoint().step == run.config.epochs * run.derived["steps_per_epoch"]
        except (FileNotFoundError, ValueError):
            return False

    def command(self) -> list[str]:
        """`msvit train ...`, or `msvit train --resume` if the run has begun."""
        train = [sys.executable, "-m", "msvit", "train"]
        if (self.folder / "config.json").exists():
            return [*train, "--resume", str(self.folder)]
        return [*train, "--preset", self.preset, "--output", str(self.folder), *_options(self.values)]


def make_jobs(study: Study, runs: Path, names: Sequence[str], seeds: int, quick: bool) -> list[list[Job]]:
    """Jobs in waves; a job starts only from runs of earlier waves.

    Args:
        study: study of the settings.
        runs: folder of all runs.
        names: wanted settings, all if empty; the settings that they start from are added.
        seeds: runs of each setting, with seeds 0, 1, ...
        quick: tiny models and few images.

    Raises:
        ValueError: an unknown name.
    """
    by_name = {setting.name: setting for setting in study.settings}
    if unknown := sorted(set(names) - by_name.keys()):
        raise ValueError(f"--only: expected {', '.join(by_name)}, got {', '.join(unknown)}")
    wanted = set(names or by_name) | {study.first}
    wanted |= {gate_of for name in wanted if (gate_of := by_name[name].gate_of)}
    waves: list[list[Job]] = [[], [], []]
    for setting in study.settings:
        if setting.name in wanted:
            depth = 0 if setting.name == study.first else 2 if setting.gate_of else 1
            waves[depth] += [_make_job(study, runs, setting, seed, quick) for seed in range(seeds)]
    return waves


def _make_job(study: Study, runs: Path, setting: Setting, seed: int, quick: bool) -> Job:
    values = {**study.common, **setting.options, "seed": seed}
    gate_run = None
    if quick:
        values |= study.quick
    if setting.pretrained:
        values["checkpoint"] = str(runs / run_name(study.first, seed))
    if setting.gate_of:
        gate_run = runs / run_name(setting.gate_of, seed)
        values["gate_file"] = str(gate_run / "gate.safetensors")
    return Job(setting, study.preset, runs / run_name(setting.name, seed), values, gate_run)


def run_name(setting: str, seed: int | str) -> str:
    """Name of a run's folder."""
    return f"{setting}-s{seed}"


def _options(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{'' if value else 'no-'}{option}"
        else:
            yield from (f"--{option}", str(value))
