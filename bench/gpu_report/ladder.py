"""Steps of a ladder: commands with time limits; if one fails, the others still run."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bench.gpu_report import commands

FEW_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of steps side by side


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        name: name in the log.
        command: program and arguments.
        limit: seconds after which it is stopped.
        environment: variables beyond those of the ladder.
    """

    name: str
    command: Sequence[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Ladder:
    """One call of the ladder.

    Attributes:
        output: folder of all results.
        device: "cuda" or "cpu".
        deadline: moment of `time.monotonic` at which it ends.
        endings: a line for each step that ended.
    """

    output: Path
    device: str
    deadline: float
    endings: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds before the deadline."""
        return self.deadline - time.monotonic()

    def say(self, text: str) -> None:
        """Prints a line and keeps it."""
        line = f"[{self.left:6.1f} s left] {text}"
        print(line, flush=True)
        with (self.output / "ladder.log").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def run(self, step: Step, alone: bool = True) -> commands.Result:
        """Runs one step; its output goes to steps.log and, if it runs alone, to a file of its own until it ends."""
        limit = min(step.limit, self.left)
        if limit < 2:
            result = commands.Result(None, "", 0)
        else:
            running = self.output / "running.log" if alone else None
            result = commands.run(step.command, limit, step.environment, running)
            with (self.output / "steps.log").open("a", encoding="utf-8") as file:
                file.write(f"===== {step.name}: {' '.join(step.command)}\n{result.output}\n")
            if running:
                running.unlink()
        ending = "ok" if result.ok else result.failure(limit)
        self.endings.append(f"{step.name}: {ending} after {result.seconds:.1f} s")
        self.say(self.endings[-1])
        return result

    def at_once(self, steps: Sequence[Step], workers: int = 8) -> list[commands.Result]:
        """Runs several steps in parallel; none of them measures times."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(partial(self.run, alone=False), steps))

    def show(self, result: commands.Result, lines: int = 80) -> None:
        """Prints the last lines of a step's output."""
        self.say("\n" + "\n".join(result.output.splitlines()[-lines:]))

    def module(self, name: str, limit: float, module: str, *arguments: object) -> Step:
        """A step that runs a measuring module of `bench` into the output folder."""
        words = [*map(str, arguments), "--device", self.device, "--output", str(self.output)]
        return Step(name, commands.module(module, *words), limit)

    def own(self, name: str, seconds: float) -> Step:
        """A step of steps.py in a process of its own, whose limit is ten seconds above that of the step."""
        step = self.module(name, seconds + 10, "gpu_report.steps", name, "--seconds", seconds)
        return replace(step, environment=FEW_THREADS)
