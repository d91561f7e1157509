"""The text on the study of segmentation: its table and its verdicts."""

import pytest

from bench.experiments import segmentation
from bench.rows import write_rows

# Intervals of three seeds reach 4.303 / sqrt(3) = 2.48 standard deviations from the mean.
SEEDS = 3
GMACS = {"plain-64": 0.04, "plain-48": 0.02, "plain-32": 0.01, "entropy-50": 0.03, "entropy-25": 0.015}


def row(setting, seed, miou):
    numbers = dict.fromkeys((column for column, *_ in segmentation._COLUMNS), 0.5)
    texts = dict.fromkeys(("machine", "torch", "commit", "test_images", "train_images"), "x")
    gmacs = GMACS.get(setting, 0.015)
    return {"setting": setting, "about": "any", "seed": seed, **texts, **numbers, "miou": miou, "gmacs": gmacs}


def text_of(path, **settings):
    """The text for the mean IoU of each seed."""
    found = {name.replace("_", "-"): scores for name, scores in settings.items()}
    write_rows(path, [row(name, seed, miou) for name, scores in found.items() for seed, miou in enumerate(scores)])
    return segmentation.text(path)


@pytest.mark.parametrize(
    ("entropy", "word"),
    [((0.54, 0.55, 0.56), "better"), ((0.44, 0.45, 0.46), "worse"), ((0.49, 0.5, 0.53), "undecided")],
    ids=["better", "worse", "undecided"],
)
def test_verdicts_follow_from_the_interval(tmp_path, entropy, word):
    """Plain models of 0.4 and 0.6 at 0.02 and 0.04 GMACs give 0.5 at 0.03."""
    plain = {"plain_64": (0.6,) * SEEDS, "plain_48": (0.4,) * SEEDS}
    text = " ".join(text_of(tmp_path / "rows.csv", **plain, entropy_50=entropy, random_25=(0.5,) * SEEDS).split())
    mean = 100 * (sum(entropy) / SEEDS - 0.5)
    assert f"interpolated between image sizes: {mean:+.1f} ± " in text
    assert f"points of mIoU, **{word}**." in text
    assert "`entropy-25` against `random-25`: not measured." in text


def test_the_table_has_an_interval(tmp_path):
    text = text_of(tmp_path / "rows.csv", entropy_25=(0.5, 0.52, 0.54), random_25=(0.4, 0.43, 0.43))
    assert "| `entropy-25` | any | 3 | 52.0 ± 5.0 |" in text
    # The differences of the seeds are 10, 9 and 11 points.
    assert "`entropy-25` against `random-25`: +10.0 ± 2.5 points of mIoU, **better**." in " ".join(text.split())
