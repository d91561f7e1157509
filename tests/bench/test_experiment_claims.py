"""The claims of docs/experiments.md follow from the rows."""

import pytest

from bench.experiments import claims
from bench.experiments.plain import mixed_scale_beats_plain
from tests.bench.experiment_rows import rows


@pytest.mark.parametrize(
    ("learned", "radial", "tokens", "word"),
    [
        ([0.8, 0.82, 0.81], [0.6, 0.61, 0.63], 47, "**holds**"),
        ([0.6, 0.61, 0.63], [0.8, 0.82, 0.81], 47, "**does not hold**"),
        ([0.6, 0.7, 0.8], [0.71, 0.6, 0.77], 47, "**undecided**"),
        ([0.8, 0.82, 0.81], [0.6, 0.61, 0.63], 60, "**not decided: 28% more tokens**"),
        ([0.6, 0.61, 0.63], [0.8, 0.82, 0.81], 60, "**does not hold**"),
        ([0.8, 0.82, 0.81], [0.6, 0.61, 0.63], 40, "**holds**"),
        ([0.6, 0.61, 0.63], [0.8, 0.82, 0.81], 40, "**not decided: 15% fewer tokens**"),
        ([0.6, 0.7, 0.8], [0.71, 0.6, 0.77], 60, "**undecided**"),
    ],
    ids=[
        "better",
        "worse",
        "within_spread",
        "better_with_more",
        "worse_with_more",
        "better_with_fewer",
        "worse_with_fewer",
        "within_spread_with_more",
    ],
)
def test_learned_against_fixed(learned, radial, tokens, word):
    lines = claims.learned_beats_fixed(
        rows(gbas={"top1": learned, "tokens_per_image": tokens}, radial={"top1": radial})
    )
    assert word in lines[0]
    assert lines[1:] == [f"- Learned gate against the {name} gate: not measured." for name in ("random", "entropy")]


@pytest.mark.parametrize(
    ("packed", "word"),
    [
        ([0.80, 0.81, 0.82], "holds"),
        ([0.77, 0.78, 0.79], "does not hold"),
        ([0.75, 0.80, 0.85], "undecided"),
    ],
    ids=["equal", "three_points_less", "noisy"],
)
def test_packed_training_against_masked(packed, word):
    measured = rows(
        gbas={"top1": packed, "train_images_per_s": 300},
        gbas_masked={"top1": [0.80, 0.81, 0.82], "train_images_per_s": 100},
    )
    trimmed, mine = claims.short_training_costs_little(measured)
    assert trimmed.endswith("not measured.")
    assert f"**{word}**" in mine
    assert "3.0x as many images/s" in mine


def test_dynamic_gate():
    measured = rows(gbas={"dynamics": [0.9, 0.91, 0.92]}, l0={"dynamics": [0.1, 0.11, 0.1]}, bas={"dynamics": 0.99})
    lines = claims.gbas_is_dynamic(measured)
    assert "than L0: **holds** (91.0% against 10.3%" in lines[0]
    assert lines[1].endswith("not measured.")
    assert "**does not hold**" in lines[2]


@pytest.mark.parametrize(
    ("top1", "word"),
    [
        ([0.75, 0.77, 0.78], "**holds** (+1.7 ± 0.7 points; 76.7 % against 75.0 %"),
        ([0.70, 0.73, 0.76], "**does not hold** (-2.0 ± 1.2 points"),
        ([0.72, 0.78, 0.77], "**undecided** (+0.7 ± "),
    ],
    ids=["better", "worse", "within_spread"],
)
def test_against_plain_models_of_equal_cost(top1, word):
    # Seeds differ by more than the gain: only the plain models of the same seed decide the claim.
    plain = rows(
        plain_80={"gmacs": 0.03, "top1": [0.88, 0.90, 0.92]}, plain_48={"gmacs": 0.01, "top1": [0.58, 0.60, 0.62]}
    )
    lines = mixed_scale_beats_plain({**plain, **rows(gbas={"gmacs": 0.02, "top1": top1})})
    assert word in lines[0]
    assert lines[1] == "- `gbas-25` against plain models: not measured."


def test_plain_models_are_interpolated_for_each_seed():
    plain = rows(plain_80={"gmacs": 0.03, "top1": 0.9}, plain_48={"gmacs": 0.01, "top1": 0.6})
    gbas = rows(gbas={"gmacs": [0.01, 0.02, 0.03], "top1": [0.65, 0.80, 0.95]})
    lines = mixed_scale_beats_plain({**plain, **gbas})
    assert "of 0.0200 GMACs: **holds** (+5.0 ± 0.0 points; 80.0 % against 75.0 %" in lines[0]


def test_plain_models_of_another_cost_decide_nothing():
    plain = rows(plain_80={"gmacs": 0.03, "top1": 0.9}, plain_48={"gmacs": 0.01, "top1": 0.6})
    outside = rows(gbas={"gmacs": [0.02, 0.005, 0.02], "top1": 1.0})
    lines = mixed_scale_beats_plain({**plain, **outside})
    assert lines[0] == "- `gbas`: 0.0050 GMACs with seed 1 outside the range of the plain models; **not decided**."
    one_seed = {name: mine[:1] for name, mine in {**plain, **rows(gbas={"top1": 1.0})}.items()}
    assert mixed_scale_beats_plain(one_seed)[0] == "- `gbas` against plain models: not measured."


def test_coverage_that_no_run_has():
    lines = claims.fine_regions_find_the_digit(
        rows(
            gbas={"fine_on_digit": 0.6, "fine_on_digit_by_chance": 0.1, "digit_found": 0.8}, l0={"fine_on_digit": "nan"}
        )
    )
    assert lines == [
        "- `gbas`: 60% of the fine regions cover the digit (by chance 10%); 80% of the digit's regions are fine.",
        "- `l0`: at least one run has no fine region.",
    ]
