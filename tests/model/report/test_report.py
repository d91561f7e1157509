"""The whole report: every figure, the numbers of its tables, its omissions, and errors."""

import base64
import csv
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from msvit.cli import app
from msvit.data import DigitsOnPhotographs
from msvit.report import build_report, evaluate
from msvit.report.coverage import measure_coverage
from msvit.report.images import load_test_images
from msvit.training import Run

FIGURES = {
    "tradeoff.png",
    "history.png",
    "masks.png",
    "priors.png",
    "tokens-0.png",
    "tokens-1.png",
    "histogram.png",
    "coverage.png",
    "shifts-0.png",
    "shifted-maps-0.png",
}


def rows_of(page, index):
    """Cells of the page's table of that index, without its header."""
    table = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)[index]
    return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]


def test_every_figure_is_a_readable_picture(built):
    assert {path.name for path in built.glob("*.png")} == FIGURES
    for name in FIGURES:
        with Image.open(built / name) as picture:
            assert picture.format == "PNG"
            colours = picture.convert("RGB").getcolors(2**24)
        assert min(picture.size) > 150, name
        assert len(colours) > 20, f"{name} shows something"


def test_page_holds_the_figures_and_loads_nothing(built):
    page = (built / "report.html").read_text()
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert {base64.b64decode(data) for data in embedded} == {(built / name).read_bytes() for name in FIGURES}
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)


def test_table_shows_what_the_runs_give(built, runs):
    cells = {row[0].split(": ")[1]: row[1:] for row in rows_of((built / "report.html").read_text(), 1)}
    assert set(cells) == set(runs)
    for name, run in runs.items():
        test = load_test_images(run)
        found = evaluate(run.model(), test, run.config.batch_size)
        covered = measure_coverage(found.masks, test.boxes, 16)
        seed, top1, tokens, gmacs, _, fine, dynamics, on_object, chance, object_found = cells[name]
        assert seed == str(run.config.seed)
        assert top1 == f"{100 * run.metrics[-1]['top1']:.2f}" == f"{100 * found.top1:.2f}"
        assert tokens == f"{run.metrics[-1]['tokens_per_image']:.1f}"
        assert gmacs == f"{run.metrics[-1]['gmacs']:.4f}"
        assert fine == f"{100 * found.fine_share:.1f}"
        assert dynamics == f"{100 * found.dynamics:.1f}"
        assert on_object == f"{100 * covered.on_object:.1f}"
        assert chance == f"{100 * covered.chance:.1f}"
        assert object_found == f"{100 * covered.found:.1f}"


def test_settings_show_mean_and_spread(built):
    page = (built / "report.html").read_text()
    learned, radial = rows_of(page, 0)
    values = [float(row[2]) for row in rows_of(page, 1)[:2]]
    assert learned[:2] == ["learned, gbas", "2"]
    assert learned[2] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert radial[:2] == ["radial", "1"]
    assert "±" not in radial[2]


def test_csv_has_the_same_rows(built):
    with (built / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    table = rows_of((built / "report.html").read_text(), 1)
    assert [row["run"] for row in rows] == [row[0].split(": ")[1] for row in table]
    for row, cells in zip(rows, table, strict=True):
        assert f"{float(row['top-1, %']):.2f}" == cells[2]
        assert f"{float(row['ms per image']):.3f}" == cells[5]
        assert float(row["ms per image"]) > 0


def test_one_run_on_data_without_places(folders, tmp_path, monkeypatch):
    """The data set is not a tensor and has no boxes."""

    def items(run):
        data = DigitsOnPhotographs("test", run.config.test_size, 0, 48)
        return [data[i] for i in range(len(data))]

    monkeypatch.setattr(Run, "test_dataset", items)
    options = {"latency_seconds": 0.0, "limit": 20, "maps": 5}
    page = build_report([folders["radial-0"]], tmp_path, device=torch.device("cpu"), **options).read_text()
    assert "Left out: the data set does not give the place of the object" in page
    assert "Left out: only the generalized batch-shaping loss learns priors" in page
    assert "Left out: there is no learned gate" in page
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "tradeoff.png",
        "history.png",
        "masks.png",
        "tokens-0.png",
        "histogram.png",
    }
    (cells,) = rows_of(page, 0)
    assert cells[-3:] == ["–", "–", "–"]
    assert "20 test images" in page


def test_pictures_of_an_older_report_go(folders, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "priors.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "tokens-7.png")
    (tmp_path / "mine.png").write_bytes(b"not of the report")
    options = {"transforms": 0, "latency_seconds": 0.0, "limit": 8, "maps": 1}
    build_report([folders["radial-0"]], tmp_path, device=torch.device("cpu"), **options)
    assert not (tmp_path / "priors.png").exists()
    assert not (tmp_path / "tokens-7.png").exists()
    assert (tmp_path / "mine.png").exists()


def call(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_command(folders, tmp_path):
    options = ("--images", 8, "--maps", 2, "--transforms", 0, "--seconds", 0.01, "--device", "cpu")
    result = call(folders["learned-0"], "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "report.html" in result.stdout
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_command_without_an_output(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("radial-0", "learned-0"):
        shutil.copytree(folders[name], tmp_path / name)
    options = ("--images", 4, "--maps", 1, "--transforms", 0, "--seconds", 0, "--device", "cpu")
    assert call("radial-0", *options).exit_code == 0
    assert (tmp_path / "radial-0" / "report" / "report.html").exists()
    assert call("radial-0", "learned-0", *options).exit_code == 0
    assert (tmp_path / "report" / "report.html").exists()


def damaged(folders, tmp_path, what):
    copy = tmp_path / "copy"
    shutil.copytree(folders["radial-0"], copy)
    if what == "unfinished":
        shutil.rmtree(copy / "checkpoints")
    if what == "config":
        (copy / "config.json").write_text("{")
    if what == "checkpoint":
        for path in copy.glob("checkpoints/*/model.safetensors"):
            path.write_bytes(path.read_bytes()[:100])
    return copy


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", "expected the folder of a run, got no such path"),
        ("empty", "expected the folder of a run, got a folder without config.json"),
        ("unfinished", "expected a checkpoint, got none"),
        ("config", "config.json: cannot be read"),
        ("checkpoint", "all of its checkpoints are damaged"),
    ],
)
def test_folders_that_are_no_runs(folders, tmp_path, what, words):
    (tmp_path / "empty").mkdir()
    folder = tmp_path / what if what in ("missing", "empty") else damaged(folders, tmp_path, what)
    result = call(folders["learned-0"], folder, "-o", tmp_path / "out")
    assert result.exit_code == 1
    error = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert words in error[0]
    assert str(folder) in error[0]
    assert not (tmp_path / "out").exists(), "found before any work"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--images", 0), "--images: expected 1 or more, got 0"),
        (("--maps", 0), "--maps: expected 1 or more"),
        (("--transforms", -1), "--transforms: expected 0 or more"),
        (("--device", "tpu"), "--device: expected cpu or cuda, got 'tpu'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_wrong_options(folders, tmp_path, options, words):
    result = call(folders["learned-0"], "-o", tmp_path / "out", *options)
    assert (result.exit_code, words in result.stderr) == (1, True)


def test_output_that_is_a_file(folders, tmp_path):
    (tmp_path / "out").write_text("")
    result = call(folders["radial-0"], "-o", tmp_path / "out", "--images", 4, "--seconds", 0)
    assert result.exit_code == 1
    assert "expected a folder, got a file" in result.stderr
