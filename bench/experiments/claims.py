"""The claims of the page, each judged by the rows; a claim that they do not decide is called undecided."""

import math
import statistics
from collections.abc import Callable

from bench.experiments.plain import mixed_scale_beats_plain
from bench.experiments.spread import Rows, difference, points, values, verdict

FIXED = ("radial", "random", "entropy")
# Fixed gates come in steps: the better of two gates may use up to this share of tokens more than the other.
_EQUAL_TOKENS = 0.1
_LITTLE = 1.0  # points of accuracy


def learned_beats_fixed(rows: Rows) -> list[str]:
    """The learned gate against each fixed gate; a gate that is better but uses more tokens does not count as better."""
    lines = []
    for name in FIXED:
        change = difference(rows, "gbas", name, "top1")
        if change is None:
            lines.append(f"- Learned gate against the {name} gate: not measured.")
            continue
        mine, theirs = (statistics.fmean(values(rows[one], "tokens_per_image")) for one in ("gbas", name))
        word, more = verdict(change), mine / theirs - 1
        if word == "holds" and more > _EQUAL_TOKENS:
            word = f"not decided: {more:.0%} more tokens"
        if word == "does not hold" and more < -_EQUAL_TOKENS:
            word = f"not decided: {-more:.0%} fewer tokens"
        lines.append(
            f"- The learned gate is better than the {name} gate: **{word}** "
            f"({points(change)} with {mine:.1f} against {theirs:.1f} tokens)."
        )
    return lines


def gbas_is_dynamic(rows: Rows) -> list[str]:
    """The share of the mask's variance between images, for GBaS and for the other losses."""
    lines = []
    for name, about in (("l0", "L0"), ("bas-flat", "flattened batch shaping"), ("bas", "batch shaping per position")):
        change = difference(rows, "gbas", name, "dynamics")
        if change is None:
            lines.append(f"- GBaS against {about}: not measured.")
            continue
        mine, theirs = (statistics.fmean(values(rows[one], "dynamics")) for one in ("gbas", name))
        lines.append(
            f"- GBaS keeps the gate more dynamic than {about}: **{verdict(change)}** ({mine:.1%} against {theirs:.1%} "
            "of the mask's variance is between images)."
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
            f"- {about} training costs less than {_LITTLE:.0f} point of accuracy compared with masked training: "
            f"**{verdict(scaled, -_LITTLE)}** "
            f"({points(change)} with {tokens[0]:.1f} against {tokens[1]:.1f} tokens, {speeds[0] / speeds[1]:.1f}x as "
            "many images/s)."
        )
    return lines


def fine_regions_find_the_digit(rows: Rows) -> list[str]:
    """Share of the fine regions that cover the digit, against chance."""
    lines = []
    for name in ("gbas", "gbas-center", "gbas-long", "gbas-masked", "l0", "bas", "bas-flat", *FIXED):
        if name not in rows:
            continue
        mine, chance = (values(rows[name], column) for column in ("fine_on_digit", "fine_on_digit_by_chance"))
        if any(map(math.isnan, mine)):
            lines.append(f"- `{name}`: at least one run has no fine region.")
            continue
        found = statistics.fmean(values(rows[name], "digit_found"))
        lines.append(
            f"- `{name}`: {statistics.fmean(mine):.0%} of the fine regions cover the digit (by chance "
            f"{statistics.fmean(chance):.0%}); {found:.0%} of the digit's regions are fine."
        )
    return lines or ["- not measured."]


def other_choices(rows: Rows) -> list[str]:
    """Centre initialisation, and frozen gates."""
    lines = []
    for name, other, about in (
        ("gbas-center", "gbas", "Centre initialisation"),
        ("frozen", "gbas", "A trained, frozen gate instead of joint training"),
        ("frozen-masked", "gbas", "A frozen gate from masked training, with a backbone trained in packed mode"),
        ("frozen-masked", "gbas-masked", "The same"),
    ):
        change = difference(rows, name, other, "top1")
        lines.append(f"- {about}: " + ("not measured." if change is None else f"{points(change)} against `{other}`."))
    return lines


CLAIMS: tuple[tuple[str, Callable[[Rows], list[str]]], ...] = (
    ("A learned gate beats fixed gates at equal tokens", learned_beats_fixed),
    ("Mixed-scale tokens beat smaller images at equal cost", mixed_scale_beats_plain),
    ("Generalized batch shaping keeps the gate dynamic", gbas_is_dynamic),
    ("Trimmed and packed training cost little accuracy", short_training_costs_little),
    ("Fine regions cover the digit", fine_regions_find_the_digit),
    ("Other choices", other_choices),
)
