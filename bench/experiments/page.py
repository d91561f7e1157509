"""Writes the table and the claims of docs/experiments.md from the rows of bench/results/<device>/experiments.csv."""

import math
import re
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import ROOT
from bench.experiments.claims import CLAIMS
from bench.experiments.spread import Rows, values
from bench.experiments.study import Study
from bench.marked import Markers
from bench.rows import read_rows
from msvit_kernels.files import write_text

MARKERS = Markers("python -m bench.experiments")
# Column, header, factor, digits after the point.
COLUMNS = (
    ("top1", "top-1, %", 100, 1),
    ("tokens_per_image", "tokens", 1, 1),
    ("gmacs", "GMACs", 1, 4),
    ("fine_share", "fine, %", 100, 1),
    ("dynamics", "dynamics, %", 100, 0),
    ("fine_on_digit", "fine on digit, %", 100, 1),
    ("fine_on_digit_by_chance", "by chance, %", 100, 1),
    ("digit_found", "digit fine, %", 100, 1),
    ("train_images_per_s", "training images/s", 1, 0),
)


def rows_by_setting(path: Path) -> Rows:
    """Rows by setting, in the order of the file; the rows of a setting are in the order of their seeds.

    Raises:
        ValueError: the file has no row.
    """
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path}: expected rows, got none")
    by_setting: Rows = {}
    for row in rows:
        by_setting.setdefault(row["setting"], []).append(row)
    return {name: sorted(mine, key=lambda row: int(row["seed"])) for name, mine in by_setting.items()}


def table(
    rows: Rows,
    columns: Sequence[tuple[str, str, float, int]] = COLUMNS,
    score: str = "top1",
    spread: Callable[[Sequence[float]], float] = statistics.stdev,
) -> list[str]:
    """A table line for each setting: means over seeds.

    Args:
        rows: rows by setting.
        columns: column, header, factor and digits after the point of each value.
        score: column with a spread after the mean, if there are several seeds.
        spread: function of the numbers of the seeds.
    """
    header = ["setting", "description", "runs", *(title for _, title, _, _ in columns)]
    lines = [f"| {' | '.join(header)} |", f"|---|---|{'--:|' * (len(header) - 2)}"]
    for name, mine in rows.items():
        cells = [f"`{name}`", mine[0]["about"], str(len(mine))]
        for column, _, factor, digits in columns:
            found = [factor * value for value in values(mine, column)]
            mean = statistics.fmean(found)
            text = "–" if math.isnan(mean) else f"{mean:.{digits}f}"
            if column == score and len(found) > 1:
                text += f" ± {spread(found):.1f}"
            cells.append(text)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def source_line(path: Path, rows: Rows) -> list[str]:
    """The source of the figures, in two lines."""
    first = next(iter(rows.values()))[0]
    where = path.resolve()
    source = where.relative_to(ROOT).as_posix() if where.is_relative_to(ROOT) else where.name
    return [
        f"From {source}: evaluated at commit {first['commit']}",
        f"with torch {first['torch']} on {first['machine']}; {first['test_images']} test images, "
        f"{first['train_images']} training images.",
    ]


def measured(path: Path) -> str:
    """The text between the two comment lines."""
    rows = rows_by_setting(path)
    lines = [
        *source_line(path, rows),
        "Dynamics: share of the variance of the gate's decisions that is between images; 0 % is a static pattern.",
        "Fine on digit: share of the fine regions that cover the digit. Digit fine: share of the digit's regions that",
        "are fine.",
        "",
        *table(rows),
        "",
        "A claim holds or does not hold if the difference over paired seeds exceeds twice its standard error;",
        "otherwise it is undecided.",
    ]
    for title, judge in CLAIMS:
        lines += ["", f"### {title}", ""]
        for line in judge(rows):
            lines += textwrap.wrap(line, 120, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


def source_of(page: Path, markers: Markers) -> Path | None:
    """The CSV that the text between the markers names as its source; None if there is no page or no such line."""
    text = page.read_text().partition(markers.begin)[2].partition(markers.end)[0] if page.is_file() else ""
    found = re.search(r"^From (\S+): ", text, re.MULTILINE)
    return None if found is None else ROOT / found[1]


def write_page(study: Study, source: Path, page: Path, check: bool = False) -> None:
    """Replaces the text between the markers of the page, and creates the page if it does not exist.

    Args:
        study: study of the CSV.
        source: CSV file.
        page: Markdown file.
        check: write nothing, and raise an error if the page differs from the rows.

    Raises:
        FileNotFoundError: there is no CSV yet.
        ValueError: the CSV has no rows, or the page lacks the markers or differs.
    """
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; train something first")
    markers = study.markers
    text = page.read_text() if page.exists() else f"# Experiments on digits\n\n{markers.begin}\n{markers.end}\n"
    wanted = markers.replace(text, study.text(source), str(page))
    if check and wanted != text:
        raise ValueError(f"{page} differs from {source}: run `{markers.command} --write`")
    if not check:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, wanted)
