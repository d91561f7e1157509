"""Trains the runs that are not finished."""

import os
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench import ROOT
from bench.experiments.jobs import Job
from msvit.gates import save_gate
from msvit.training import load_run


def train(waves: Sequence[Sequence[Job]], jobs: int) -> list[str]:
    """Trains the unfinished runs, `jobs` processes at a time, and returns the names of the runs that failed."""
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
    """Trains one run and returns the error, or None."""
    if job.gate_run is not None:
        gate: Any = load_run(job.gate_run).model().gate
        save_gate(gate, job.values["gate_file"])
    environment = dict(os.environ)
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    log = job.folder.with_suffix(".log")
    with log.open("a") as file:
        code = subprocess.run(job.command(), env=environment, cwd=ROOT, stdout=file, stderr=file).returncode
    return None if code == 0 else f"failed with exit code {code}, see {log}"
