"""Commands with a time limit and recorded output."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import ROOT

LOST_DEVICE = 3  # exit code of bench.gpu_report.attention


@dataclass(frozen=True)
class Result:
    """The end of a command.

    Attributes:
        code: exit code; None if the command was stopped at its limit.
        output: stdout and stderr together.
        seconds: wall time.
    """

    code: int | None
    output: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def last_line(self) -> str:
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1][:200] if lines else "no output"

    @property
    def lost_by(self) -> str | None:
        """The backend or peer in preparation when the device was lost or stopped responding; None if neither."""
        if self.code != LOST_DEVICE and "Timeout (" not in self.output:
            return None
        prepared = re.findall(r"^preparing: (.+)$", self.output, re.MULTILINE)
        return prepared[-1] if prepared else None

    def failure(self, limit: float) -> str:
        """The reason why the command failed, such as being stopped after `limit` seconds."""
        return f"stopped after {limit:.0f} s" if self.code is None else f"exit code {self.code}: {self.last_line}"


def run(
    command: Sequence[str], limit: float, extra_env: Mapping[str, str] | None = None, log_path: Path | None = None
) -> Result:
    """Runs a command in the root of the repository.

    Args:
        command: program and arguments.
        limit: seconds, after which the command and all its children are stopped.
        extra_env: variables beyond those of this process.
        log_path: file that gets the output as it comes, so that it outlives this process.
    """
    env = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(extra_env or {})
    start = time.perf_counter()
    with log_path.open("w+", errors="replace") if log_path else tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return Result(127, str(error), 0)
        code: int | None
        try:
            code = process.wait(max(limit, 1))
        except subprocess.TimeoutExpired:
            code = None
            _stop(process)
        except BaseException:
            _stop(process)
            raise
        log.seek(0)
        return Result(code, log.read(), time.perf_counter() - start)


def find(program: str) -> str | None:
    """Path of a tool that comes with CUDA, on the PATH or not; None if it is not installed."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(program) or shutil.which(program, path=f"{home}/bin:{home}/compute-sanitizer")


def install() -> list[str]:
    """The command of an editable install that downloads nothing."""
    return python("-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", ".")


def python(*arguments: str | Path) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *map(str, arguments)]


def module(name: str, *arguments: str | Path) -> list[str]:
    """The command of a module of `bench`, such as "gpu_report.attention"."""
    return python("-m", f"bench.{name}", *arguments)


def _stop(process: subprocess.Popen[bytes]) -> None:
    # Its own process group, which it leads.
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
            break
        except subprocess.TimeoutExpired:
            continue
