"""Writes the table and the claims of docs/experiments.md from the rows of bench/results/<device>/experiments.csv.

Nothing here is typed by hand: a claim is judged by the rows, and says so when they do not decide it.
"""

import csv
import itertools
import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- measured: bench/experiments.py -->", "<!-- end of measured -->"
Row = dict[str, str]
Rows = dict[str, list[Row]]
FIXED = ("radial", "random", "entropy")
PLAIN = ("plain-80", "plain-64", "plain-48", "plain-32")
LONG = "-long"  # ends the names of settings that are trained for longer
# Fixed gates come in steps: the better of two gates may use this share of tokens more than the other.
_EQUAL_TOKENS = 0.1
_LITTLE = 1.0  # points of accuracy

# Column, header, factor, digits after the point.
_COLUMNS = (
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


def read(path: Path) -> Rows:
    """Rows by setting, in the order of the file; those of a setting by seed.

    Raises:
        ValueError: the file has no row.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path}: expected rows, got none")
    by_setting: Rows = {}
    for row in rows:
        by_setting.setdefault(row["setting"], []).append(row)
    return {name: sorted(mine, key=lambda row: int(row["seed"])) for name, mine in by_setting.items()}


def table(rows: Rows) -> list[str]:
    """A line for each setting: means over seeds, and the standard deviation of the accuracy."""
    header = ["setting", "what", "runs", *(title for _, title, _, _ in _COLUMNS)]
    lines = [f"| {' | '.join(header)} |", f"|---|---|{'--:|' * (len(header) - 2)}"]
    for name, mine in rows.items():
        cells = [f"`{name}`", mine[0]["about"], str(len(mine))]
        for column, _, factor, digits in _COLUMNS:
            found = [factor * value for value in values(mine, column)]
            mean = statistics.fmean(found)
            text = "–" if math.isnan(mean) else f"{mean:.{digits}f}"
            if column == "top1" and len(found) > 1:
                text += f" ± {statistics.stdev(found):.1f}"
            cells.append(text)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def values(rows: Sequence[Row], column: str) -> list[float]:
    """One number for each seed; not a number where the cell is empty."""
    return [float(row[column] or "nan") for row in rows]


def difference(rows: Rows, first: str, second: str, column: str) -> tuple[float, float] | None:
    """`mean_and_error` of first minus second, over the seeds that both have."""
    theirs = {row["seed"]: row for row in rows.get(second, [])}
    pairs = [(row, theirs[row["seed"]]) for row in rows.get(first, []) if row["seed"] in theirs]
    return mean_and_error([float(mine[column] or "nan") - float(other[column] or "nan") for mine, other in pairs])


def mean_and_error(found: Sequence[float]) -> tuple[float, float] | None:
    """Mean, and twice its standard error; None below two numbers, or where one is not a number."""
    if len(found) < 2 or any(map(math.isnan, found)):
        return None
    return statistics.fmean(found), 2 * statistics.stdev(found) / math.sqrt(len(found))


def verdict(change: tuple[float, float] | None, least: float = 0.0) -> str:
    """Whether the change is above `least` by more than twice its standard error."""
    if change is None:
        return "not measured"
    mean, error = change
    if mean - error > least:
        return "holds"
    return "does not hold" if mean + error < least else "undecided"


def learned_beats_fixed(rows: Rows) -> list[str]:
    """The learned gate against each fixed one; a gate that is better only with more tokens does not count as better."""
    lines = []
    for name in FIXED:
        change = difference(rows, "gbas", name, "top1")
        if change is None:
            lines.append(f"- Learned gate against the {name} one: not measured.")
            continue
        mine, theirs = (statistics.fmean(values(rows[one], "tokens_per_image")) for one in ("gbas", name))
        word, more = verdict(change), mine / theirs - 1
        if word == "holds" and more > _EQUAL_TOKENS:
            word = f"not decided: {more:.0%} more tokens"
        if word == "does not hold" and more < -_EQUAL_TOKENS:
            word = f"not decided: {-more:.0%} fewer tokens"
        lines.append(
            f"- Learned gate better than the {name} one: **{word}** "
            f"({_points(change)} with {mine:.1f} against {theirs:.1f} tokens)."
        )
    return lines


def gbas_is_dynamic(rows: Rows) -> list[str]:
    """How much of the mask's variance lies between images, against the other losses."""
    lines = []
    for name, about in (("l0", "L0"), ("bas-flat", "flattened batch shaping"), ("bas", "batch shaping per position")):
        change = difference(rows, "gbas", name, "dynamics")
        if change is None:
            lines.append(f"- GBaS more dynamic than {about}: not measured.")
            continue
        mine, theirs = (statistics.fmean(values(rows[one], "dynamics")) for one in ("gbas", name))
        lines.append(
            f"- GBaS keeps the gate more dynamic than {about}: **{verdict(change)}** ({mine:.1%} against {theirs:.1%} "
            "of the mask's variance lie between images)."
        )
    return lines


def short_training_costs_little(rows: Rows) -> list[str]:
    """Trimmed and packed training against masked training."""
    lines = []
    for name, about in (("gbas-trimmed", "Trimmed"), ("gbas", "Packed")):
        change = difference(rows, name, "gbas-masked", "top1")
        if change is None:
            lines.append(f"- {about} training against masked: not measured.")
            continue
        scaled = (100 * change[0], 100 * change[1])
        tokens, speeds = (
            [statistics.fmean(values(rows[one], column)) for one in (name, "gbas-masked")]
            for column in ("tokens_per_image", "train_images_per_s")
        )
        lines.append(
            f"- {about} training costs less than {_LITTLE:.0f} point against masked: **{verdict(scaled, -_LITTLE)}** "
            f"({_points(change)} with {tokens[0]:.1f} against {tokens[1]:.1f} tokens, {speeds[0] / speeds[1]:.1f}x as "
            "many images/s)."
        )
    return lines


def fine_regions_find_the_digit(rows: Rows) -> list[str]:
    """Share of the fine regions on the digit, against chance."""
    lines = []
    for name in ("gbas", "gbas-center", "gbas-long", "gbas-masked", "l0", "bas", "bas-flat", *FIXED):
        if name not in rows:
            continue
        mine, chance = (values(rows[name], column) for column in ("fine_on_digit", "fine_on_digit_by_chance"))
        if any(map(math.isnan, mine)):
            lines.append(f"- `{name}`: in some run no region is fine.")
            continue
        found = statistics.fmean(values(rows[name], "digit_found"))
        lines.append(
            f"- `{name}`: {statistics.fmean(mine):.0%} of the fine regions cover the digit, by chance "
            f"{statistics.fmean(chance):.0%}; {found:.0%} of the digit's regions are fine."
        )
    return lines or ["- not measured."]


def mixed_scale_beats_plain(rows: Rows) -> list[str]:
    """Against plain models of the same seed and as many multiply-accumulates, interpolated between image sizes."""
    lines = []
    for name, suffix in (
        ("gbas", ""),
        ("gbas-25", ""),
        ("gbas-masked", ""),
        ("frozen-masked", ""),
        ("gbas-long", LONG),
    ):
        curves = [(row, _plain_curve(rows, row["seed"], suffix)) for row in rows.get(name, [])]
        pairs = [(row, _at_cost(curve, float(row["gmacs"]))) for row, curve in curves if len(curve) > 1]
        if outside := [row for row, expected in pairs if expected is None]:
            costs = ", ".join(f"{float(row['gmacs']):.4f} GMACs with seed {row['seed']}" for row in outside)
            lines.append(f"- `{name}`: {costs} lie outside the range of the plain models; **not decided**.")
            continue
        inside = [(float(row["top1"]), expected) for row, expected in pairs if expected is not None]
        change = mean_and_error([top1 - expected for top1, expected in inside])
        if change is None:
            lines.append(f"- `{name}` against plain models: not measured.")
            continue
        cost = statistics.fmean(float(row["gmacs"]) for row, _ in pairs)
        mine, theirs = (100 * statistics.fmean(column) for column in zip(*inside, strict=True))
        lines.append(
            f"- `{name}` better than plain models of its {cost:.4f} GMACs: **{verdict(change)}** ({_points(change)}; "
            f"{mine:.1f} % against {theirs:.1f} %, interpolated between two image sizes for each seed)."
        )
    return lines


def _plain_curve(rows: Rows, seed: str, suffix: str) -> list[tuple[float, float]]:
    """(GMACs, top-1) of the plain models of one seed that were trained for as long, by cost."""
    plain = [row for name in PLAIN for row in rows.get(name + suffix, []) if row["seed"] == seed]
    return sorted((float(row["gmacs"]), float(row["top1"])) for row in plain)


def _at_cost(curve: Sequence[tuple[float, float]], cost: float) -> float | None:
    """The curve at a cost, linear between its points; None outside of them."""
    for (low, at_low), (high, at_high) in itertools.pairwise(curve):
        if low <= cost <= high:
            return at_low + (at_high - at_low) * (cost - low) / (high - low)
    return None


def other_choices(rows: Rows) -> list[str]:
    """Centre initialisation, and frozen gates."""
    lines = []
    for name, other, about in (
        ("gbas-center", "gbas", "Centre initialisation"),
        ("frozen", "gbas", "A trained gate, frozen, instead of a joint one"),
        ("frozen-masked", "gbas", "A gate that was trained masked, frozen, with a backbone that is trained packed"),
        ("frozen-masked", "gbas-masked", "The same"),
    ):
        change = difference(rows, name, other, "top1")
        lines.append(f"- {about}: " + ("not measured." if change is None else f"{_points(change)} against `{other}`."))
    return lines


CLAIMS: tuple[tuple[str, Callable[[Rows], list[str]]], ...] = (
    ("A learned gate beats fixed gates at equal tokens", learned_beats_fixed),
    ("Mixed-scale tokens beat smaller images at equal cost", mixed_scale_beats_plain),
    ("Generalized batch shaping keeps the gate dynamic", gbas_is_dynamic),
    ("Trimming, and packing, cost little accuracy", short_training_costs_little),
    ("Fine regions lie on the digit", fine_regions_find_the_digit),
    ("Other choices", other_choices),
)


def measured(path: Path) -> str:
    """The text between the two comment lines."""
    rows = read(path)
    first = next(iter(rows.values()))[0]
    where = path.resolve()
    source = where.relative_to(ROOT).as_posix() if where.is_relative_to(ROOT) else where.name
    lines = [
        f"From {source}: evaluated at commit {first['commit']} with torch {first['torch']} on {first['machine']}; "
        f"{first['test_images']} test images, {first['train_images']} training images.",
        "Dynamics: share of the variance of the gate's decisions that lies between images; 0 % is a static pattern.",
        "Fine on digit: share of the fine regions that cover the digit. Digit fine: share of its regions that are",
        "fine.",
        "",
        *table(rows),
        "",
        "A claim holds, or does not, where the difference over paired seeds exceeds twice its standard error.",
    ]
    for title, judge in CLAIMS:
        lines += ["", f"### {title}", "", *judge(rows)]
    return "\n".join(lines)


def source_of(page: Path) -> Path | None:
    """The CSV that the page was written from, as it says; None where there is no page or no such line."""
    found = re.search(r"^From (\S+): ", page.read_text(), re.MULTILINE) if page.is_file() else None
    return None if found is None else ROOT / found[1]


def write_page(source: Path, page: Path, check: bool = False) -> None:
    """Replaces what stands between the comment lines of the page; a page that does not exist is begun.

    Args:
        source: CSV.
        page: Markdown.
        check: write nothing, and raise where the page says something else than the rows.

    Raises:
        FileNotFoundError: there is no CSV yet.
        ValueError: it has no rows, or the page lacks the comment lines, or differs.
    """
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; train something first")
    text = page.read_text() if page.exists() else f"# Experiments on digits\n\n{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: expected the lines {BEGIN!r} and {END!r}")
    wanted = f"{before}{BEGIN}\n{measured(source)}\n{END}{after}"
    if check and wanted != text:
        raise ValueError(f"{page} differs from {source}: run `python bench/experiments.py --write`")
    if not check:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(wanted)


def _points(change: tuple[float, float]) -> str:
    return f"{100 * change[0]:+.1f} ± {100 * change[1]:.1f} points"
