"""report.md and report.log, from the parts that ran or from CSV rows alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu_report import summary
from bench.gpu_report.report import Report
from bench.machine import facts
from bench.rows import commits, read_rows
from msvit_kernels.files import write_text


@dataclass(frozen=True)
class Outcome:
    """The end of a part.

    Attributes:
        part: name of the part.
        status: "passed", "failed" or "skipped".
        seconds: wall time.
        why: reason of the status.
    """

    part: str
    status: str
    seconds: float
    why: str = ""


def write_report(report: Report, outcomes: Sequence[Outcome], verified: list[tuple[str, str]]) -> None:
    """Writes report.md and report.log."""
    if report.output is None:
        return
    lines = [*heading(facts(report.device)), "", "## Parts", ""]
    rows = [[each.part, each.status, f"{each.seconds:.0f} s", each.why] for each in outcomes]
    lines += summary.markdown_table(("part", "", "time", ""), rows, 4)
    lines += ["", *summary.report_lines(report.output, with_targets=report.on_gpu)]
    for part, notes in report.notes.items():
        lines += ["", f"## Notes: {part}", "", *(f"- {note}" for note in notes)]
    if verified:
        lines += ["", "## Covered by the tests that passed", "", *(f"- `{file}` `{name}`" for file, name in verified)]
    report.output.mkdir(parents=True, exist_ok=True)
    write_text(report.output / "report.md", "\n".join(lines) + "\n")
    write_text(report.output / "report.log", "\n".join(report.log))


def write_tables(folder: Path) -> None:
    """Writes report.md from the CSV rows of a folder.

    Raises:
        ValueError: the folder has no CSV rows.
    """
    rows = [row for path in folder.glob("*.csv") for row in read_rows(path)]
    if not rows:
        raise ValueError(f"--tables: expected a folder with CSV rows, got {str(folder)!r}")
    newest = max(rows, key=lambda row: row["date"])
    lines = [*heading(newest | {"commit": commits(rows)}), "", *summary.report_lines(folder, with_targets=True)]
    write_text(folder / "report.md", "\n".join(lines) + "\n")


def heading(known: Mapping[str, Any]) -> list[str]:
    """Title, versions, commit and date."""
    return [
        f"# GPU report: {known['machine']}",
        "",
        f"torch {known['torch']}, triton {known['triton']}, timm {known['timm']}, commit {known['commit']}, "
        f"{known['date']}. Written by `python -m bench.gpu_report`; [docs/gpu.md](../../../docs/gpu.md) describes the "
        "method.",
    ]
