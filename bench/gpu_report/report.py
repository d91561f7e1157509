"""The state of a report, which its parts share."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.gpu_report import commands


class SkipPart(Exception):  # noqa: N818  no error
    """The part is skipped; the text is the reason."""


@dataclass
class Report:
    """The state that all parts share.

    Attributes:
        device: device that is measured.
        quick: small shapes.
        output: folder of the results; if None, nothing is written.
        notes: findings and omissions, by part.
        outcomes: outcomes of the tests, by test.
        log: output of all commands.
    """

    device: torch.device
    quick: bool
    output: Path | None
    notes: dict[str, list[str]] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def note(self, part: str, text: str) -> None:
        """Keeps and prints a line."""
        self.notes.setdefault(part, []).append(text)
        print(f"  {text}", flush=True)

    def need_gpu(self, what: str) -> None:
        """Raises SkipPart without a GPU."""
        if not self.on_gpu:
            raise SkipPart(f"no GPU: {what}")

    def module(self, part: str, limit: float, module: str, *arguments: object) -> commands.Result:
        """Runs a measuring module of `bench`; its lines about omissions become notes."""
        command = commands.module(module, *map(str, arguments), "--device", self.device.type)
        if self.output is not None:
            command += ["--output", str(self.output)]
        result = commands.run(command, limit)
        self.keep(part, result)
        for line in result.output.splitlines():
            if line.startswith(("left out:", "FAILED")):
                self.note(part, line)
        return result

    def keep(self, part: str, result: commands.Result) -> None:
        """Adds the output of a command to the log."""
        self.log += [f"===== {part}: exit code {result.code} after {result.seconds:.1f} s", result.output]
