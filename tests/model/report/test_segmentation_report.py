"""The report on segmentation runs: its figures, its tables and CSVs, and runs that cannot be compared."""

import csv

import pytest
import torch
from PIL import Image

from msvit.report import build_report
from msvit.training import start_run
from tests.model.training.run_helpers import paired_folders, segmentation_config


def report(folders, output, **options):
    return build_report(folders, output, device=torch.device("cpu"), **{"maps": 2, "latency_seconds": 0.01, **options})


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Image files of two sizes, with windows that are no multiple of a region."""
    root = tmp_path_factory.mktemp("segmentation")
    data = paired_folders(root / "data")
    config = segmentation_config(
        data=str(data), batch_size=3, epochs=1, gate="random", gate_target=0.5, window=20, stride=10
    )
    return start_run(config, root / "run")


def test_figures_and_tables(run, tmp_path):
    page = report([run.folder], tmp_path / "report").read_text()
    pictures = {path.name for path in (tmp_path / "report").glob("*.png")}
    assert pictures == {"tradeoff.png", "history.png", "classes.png", "examples-0.png"}
    for name in pictures:
        with Image.open(tmp_path / "report" / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24)) > 20, f"{name} shows something"
    (row,), last = rows_of(tmp_path / "report" / "runs.csv"), run.metrics[-1]
    assert float(row["mean IoU, %"]) == pytest.approx(100 * last["miou"])
    assert float(row["GMACs"]) == pytest.approx(last["gmacs"])
    assert float(row["ms per window"]) > 0
    assert f"<td>{100 * last['miou']:.2f}</td>" in page
    classes = rows_of(tmp_path / "report" / "classes.csv")
    own = rows_of(run.folder / "classes.csv")
    assert [row["class"] for row in classes] == ["cat", "dog"]
    for column in ("iou", "accuracy", "coarse_share"):
        assert [float(row[column]) for row in classes] == pytest.approx([float(row[column]) for row in own])


def test_runs_of_other_tasks_or_classes_are_refused(run, folders, tmp_path):
    with pytest.raises(ValueError, match="expected runs of one task, got classification and segmentation"):
        report([run.folder, next(iter(folders.values()))], tmp_path / "report")
    digits = start_run(segmentation_config(epochs=1), tmp_path / "digits")
    with pytest.raises(ValueError, match="expected runs on the same classes, got different ones"):
        report([run.folder, digits.folder], tmp_path / "report")
    assert not (tmp_path / "report").exists()
