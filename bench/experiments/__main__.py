"""Runs the experiments on the built-in digits, three seeds each, and writes what came out.

    python bench/experiments.py [--jobs 2] [--only NAME ...] [--seeds 3]     trains what is missing, then collects
    python bench/experiments.py --collect                                    only collects what is finished
    python bench/experiments.py --write                                      only docs/experiments.md, from the CSV

As in the paper, models start from a plain ViT: `pretrained` is trained first, for each seed. Finished runs are skipped
and interrupted ones resumed, so the command can be stopped and given again. Figures go to
bench/results/<device>/experiments.csv, and from there into docs/experiments.md. A CSV is never replaced by one that
lacks some of its runs: to get a smaller one, remove it first.
"""

import argparse
import csv
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import ROOT, facts, results_dir, write_csv
from experiments_page import source_of, write_page

from msvit.gates import save_gate
from msvit.report.examined import examine
from msvit.training import Config, Run, load_run, make_config

FIRST = "pretrained"
# A quick pass through everything, for tests: nothing is learned.
QUICK = {"image_size": 48, "embed_dim": 32, "depth": 1, "num_heads": 2, "train_size": 64, "test_size": 40, "epochs": 1}


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Attributes:
        name: of the row and of its runs, NAME-s0, NAME-s1, ...
        about: what it is, for the table.
        options: values of `msvit.training.Config` that differ from the preset.
        gate_of: setting whose trained gate this one takes over, frozen.
        pretrained: whether it starts from the run of `pretrained` with the same seed.
    """

    name: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    gate_of: str | None = None
    pretrained: bool = True


_PLAIN = {"gate": "fine", "loss": "none"}
_FIXED = {"loss": "none"}
# What all share on top of the preset, but for those that follow the preset in this.
_COMMON = {"epochs": 5, "gate_delay_epochs": 0.0, "gate_warmup_epochs": 0.5, "warmup_epochs": 0.3}
# Few epochs: with the backbone's learning rate a gate would not have reached its prior by their end.
_COMMON["gate_lr_scale"] = 3.0
_LONG = {"epochs": 15}
_PRESET = {name: getattr(make_config("digits"), name) for name in _COMMON}

SETTINGS = (
    Setting(FIRST, "plain ViT, from scratch: what all below start from", {**_PLAIN, **_PRESET}, pretrained=False),
    Setting("scratch", "`msvit train --preset digits`: gate and backbone from scratch", _PRESET, pretrained=False),
    Setting("plain-80", "plain ViT, 80 px", {**_PLAIN, "image_size": 80}),
    Setting("plain-64", "plain ViT, 64 px", {**_PLAIN, "image_size": 64}),
    Setting("plain-48", "plain ViT, 48 px", {**_PLAIN, "image_size": 48}),
    Setting("plain-32", "plain ViT, 32 px", {**_PLAIN, "image_size": 32}),
    Setting("coarse", "all regions of 80 px coarse", {"gate": "coarse", "loss": "none"}),
    Setting("l0", "learned gate, L0 loss", {"loss": "l0"}),
    Setting("bas", "learned gate, batch shaping per position", {"loss": "bas"}),
    Setting("bas-flat", "learned gate, batch shaping, flattened", {"loss": "bas-flat"}),
    Setting("gbas", "learned gate, generalized batch shaping", {"loss": "gbas"}),
    Setting("gbas-center", "the same with centre initialisation", {"loss": "gbas", "center_init": True}),
    Setting("gbas-25", "generalized batch shaping, g* = 0.25", {"loss": "gbas", "gate_target": 0.25}),
    # Of 25 regions, the central ones come as 1 or 5: the gate that the learned one is to beat gets the more.
    Setting("radial", "fixed gate, the 5 central regions fine", {"gate": "radial", "gate_target": 0.2, **_FIXED}),
    Setting("random", "random gate", {"gate": "random", **_FIXED}),
    # The test photographs are smoother: a threshold that 28 % of the training regions exceed lets 11 % of theirs pass.
    Setting("entropy", "entropy gate, as many test regions fine", {"gate": "entropy", "gate_target": 0.28, **_FIXED}),
    Setting("frozen", "gate of `gbas`, frozen, backbone trained", {"freeze": "gate"}, gate_of="gbas"),
    Setting("gbas-trimmed", "`gbas` trained trimmed", {"loss": "gbas", "token_mode": "trimmed"}),
    Setting("gbas-masked", "`gbas` trained masked", {"loss": "gbas", "token_mode": "masked"}),
    Setting("frozen-masked", "gate of `gbas-masked`, frozen, backbone trained", {"freeze": "gate"}, "gbas-masked"),
    Setting("gbas-long", "`gbas`, 15 epochs", {"loss": "gbas", **_LONG}),
    Setting("plain-48-long", "plain ViT, 48 px, 15 epochs", {**_PLAIN, "image_size": 48, **_LONG}),
    Setting("plain-32-long", "plain ViT, 32 px, 15 epochs", {**_PLAIN, "image_size": 32, **_LONG}),
)


@dataclass(frozen=True)
class Job:
    """One setting with one seed: its values, its folder, and the run whose gate it takes over, frozen."""

    setting: Setting
    folder: Path
    values: dict[str, Any]
    gate_run: Path | None

    def config(self) -> Config:
        """What the run is to be."""
        return make_config("digits", **self.values)

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
        """`msvit train ...`, or `--resume` where the run has begun."""
        train = [sys.executable, "-m", "msvit", "train"]
        if (self.folder / "config.json").exists():
            return [*train, "--resume", str(self.folder)]
        return [*train, "--preset", "digits", "--output", str(self.folder), *_options(self.values)]


def make_jobs(runs: Path, names: Sequence[str], seeds: int, quick: bool) -> list[list[Job]]:
    """Jobs in waves: those of a wave need nothing but the waves before it.

    Args:
        runs: folder of all runs.
        names: settings that are wanted; those that they start from come along. None: all.
        seeds: 0, 1, ... of each.
        quick: tiny models and few images.

    Raises:
        ValueError: an unknown name.
    """
    by_name = {setting.name: setting for setting in SETTINGS}
    if unknown := sorted(set(names) - by_name.keys()):
        raise ValueError(f"--only: expected {', '.join(by_name)}, got {', '.join(unknown)}")
    wanted = set(names or by_name) | {FIRST}
    wanted |= {gate_of for name in wanted if (gate_of := by_name[name].gate_of)}
    waves: list[list[Job]] = [[], [], []]
    for setting in SETTINGS:
        if setting.name in wanted:
            depth = 0 if setting.name == FIRST else 2 if setting.gate_of else 1
            waves[depth] += [_make_job(runs, setting, seed, quick) for seed in range(seeds)]
    return waves


def _make_job(runs: Path, setting: Setting, seed: int, quick: bool) -> Job:
    values = {**_COMMON, **setting.options, "seed": seed}
    gate_run = None
    if quick:
        values |= QUICK
    if setting.pretrained:
        values["checkpoint"] = str(runs / _run_name(FIRST, seed))
    if setting.gate_of:
        gate_run = runs / _run_name(setting.gate_of, seed)
        values["gate_file"] = str(gate_run / "gate.safetensors")
    return Job(setting, runs / _run_name(setting.name, seed), values, gate_run)


def _run_name(setting: str, seed: int | str) -> str:
    return f"{setting}-s{seed}"


def _options(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{'' if value else 'no-'}{option}"
        else:
            yield from (f"--{option}", str(value))


def train(waves: Sequence[Sequence[Job]], jobs: int) -> list[str]:
    """Trains what is not finished, `jobs` processes at a time; names of the runs that failed."""
    failed: list[str] = []
    lock = threading.Lock()

    def work(job: Job) -> None:
        error = _train_one(job, jobs)
        with lock:
            print(f"{job.folder.name}: {error or 'finished'}", flush=True)
            if error:
                failed.append(job.folder.name)

    for wave in waves:
        todo = [job for job in wave if not job.is_finished()]
        print(
            f"{len(todo)} of {len(wave)} runs to train: {', '.join(job.folder.name for job in todo) or '-'}", flush=True
        )
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(work, todo))
        if failed:
            break  # later runs may start from them
    return failed


def _train_one(job: Job, jobs: int) -> str | None:
    """What went wrong, or None."""
    if job.gate_run is not None:
        save_gate(load_run(job.gate_run).model().gate, job.values["gate_file"])
    environment = dict(os.environ)
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    log = job.folder.with_suffix(".log")
    with log.open("a") as file:
        code = subprocess.run(job.command(), env=environment, cwd=ROOT, stdout=file, stderr=file).returncode
    return None if code == 0 else f"failed with exit code {code}, see {log}"


def collect(waves: Sequence[Sequence[Job]], output: Path, device: torch.device) -> None:
    """Writes a CSV row for each finished run, in the order of the settings.

    Raises:
        ValueError: no run is finished, or the CSV has rows of others; it stays as it is.
    """
    order = {setting.name: i for i, setting in enumerate(SETTINGS)}
    finished = sorted(
        (job for wave in waves for job in wave if job.is_finished()), key=lambda job: order[job.setting.name]
    )
    if not finished:
        raise ValueError(f"{output}: not written, as no run is finished")
    if lost := _run_names(output) - {job.folder.name for job in finished}:
        names = ", ".join(sorted(lost))
        raise ValueError(
            f"{output}: not written, as it has rows of {names}, not finished or beyond --seeds; remove it first"
        )
    known = facts(device)
    write_csv(output, [{**_measure(job.setting, load_run(job.folder), device), **known} for job in finished])


def _run_names(path: Path) -> set[str]:
    """Runs that a CSV has rows of; none where there is no CSV."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {_run_name(row["setting"], row["seed"]) for row in csv.DictReader(file)}


def _measure(setting: Setting, run: Run, device: torch.device) -> dict[str, Any]:
    (group,) = examine([run], device, latency_seconds=0.0)
    evaluation, coverage = group.runs[0].evaluation, group.runs[0].coverage
    assert coverage is not None  # the digits tell where they are
    config, last = run.config, run.metrics[-1]
    return {
        "setting": setting.name,
        "about": setting.about,
        "seed": config.seed,
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


def main() -> None:
    """Parses the command line and does what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="settings (and what they start from)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, which share the cores (default: 1)")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/experiments)")
    parser.add_argument("--output", type=Path, help="CSV to write (default: bench/results/<device>/experiments.csv)")
    parser.add_argument("--page", type=Path, help="page to write (default: docs/experiments.md)")
    parser.add_argument("--collect", action="store_true", help="train nothing")
    parser.add_argument("--write", action="store_true", help="train and evaluate nothing, only write the page")
    parser.add_argument("--check", action="store_true", help="only compare the page with the CSV")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny models and few images, to see that it works; with --runs, --output and --page",
    )
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("--seeds and --jobs: expected 1 or more")
    if arguments.quick and None in (arguments.runs, arguments.output, arguments.page):
        parser.error("--quick: expected --runs, --output and --page too, so that no real result is replaced")
    runs = (arguments.runs or ROOT / "runs" / "experiments").resolve()
    page = arguments.page or ROOT / "docs" / "experiments.md"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    output = arguments.output or results_dir(device) / "experiments.csv"
    if arguments.output is None and (arguments.write or arguments.check):
        output = source_of(page) or output  # of the machine that measured, perhaps another one
    try:
        if not (arguments.write or arguments.check):
            waves = make_jobs(runs, arguments.only, arguments.seeds, arguments.quick)
            if not arguments.collect and (failed := train(waves, arguments.jobs)):
                sys.exit(f"failed: {', '.join(failed)}")
            # All that is there, not only what was asked for: the page shows the whole table.
            collect(make_jobs(runs, [], arguments.seeds, arguments.quick), output, device)
        write_page(output, page, arguments.check)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{page} {'shows' if arguments.check else 'written from'} {output}")


if __name__ == "__main__":
    main()
