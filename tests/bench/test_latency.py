"""bench/latency.py: its rows and pictures, and the inputs that it refuses."""

import pytest
import torch
from PIL import Image

from bench import command_line, latency
from bench.rows import read_rows
from bench.vit import images, latency_rows, latency_table, stopwatch, sweep, zoo
from bench.vit.plot import plot_latency
from msvit.data import sample_photographs
from msvit.models import vit
from tests.bench.latency_rows import latency_row


@pytest.mark.parametrize("text", ["0", "1,x", "", "1,-2"])
def test_wrong_batch(text):
    with pytest.raises(ValueError, match="--batch: expected numbers from 1 upwards"):
        latency.parse_batches(text)


@pytest.fixture
def photographs(tmp_path):
    """A folder with two photographs and a damaged one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("coffee", "chelsea"):
        content = sample_photographs()[name].read_bytes()
        (folder / f"{name}.png").write_bytes(content)
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    return folder


def call(monkeypatch, *options):
    monkeypatch.setattr(sweep, "MAX_SAMPLES", 1)
    latency.main(["--device", "cpu", "--seconds", "600", *map(str, options)])


def test_rows_and_pictures(monkeypatch, tmp_path, capsys, photographs):
    call(monkeypatch, "--tokens", "20,98", "--batch", "1,3", "--images", photographs, "--output", tmp_path)
    printed = capsys.readouterr().out
    assert "cut.png: not a readable image" in printed
    assert "2 images for batches of 3: they are repeated" in printed
    assert "20 tokens: MSViT-S has at least 49 at 224 px, all coarse; left out" in printed
    rows = read_rows(tmp_path / "latency_fp32_20-98.csv")
    # Batch 1: dense at 16 (the square nearest 20), all four at 98, and dense at 196, which speed-ups refer to.
    found = [(row["method"], float(row["tokens"])) for row in rows if row["batch"] == "1"]
    assert found == [("dense", 16), ("dense", 100), ("masked", 97), ("trimmed", 97), ("packed", 97), ("dense", 196)]
    assert {row["batch"] for row in rows} == {"1", "3"}
    for row in rows:
        for part in ("transformer", "all"):
            assert 0 < float(row[f"{part}_p20_ms"]) <= float(row[f"{part}_p50_ms"]) <= float(row[f"{part}_p80_ms"])
        assert float(row["transformer_p50_ms"]) <= float(row["all_p50_ms"])
        assert all(row[name] for name in ("machine", "threads", "torch", "timm", "commit", "date", "share_of_peak"))
    packed = next(row for row in rows if row["method"] == "packed" and row["batch"] == "3")
    assert 97 < float(packed["tokens"]) <= 98
    assert float(packed["gmacs"]) == pytest.approx(2.24, abs=0.05)
    assert float(packed["times_masked"]) > 0
    assert float(packed["times_dense"]) > 0
    with Image.open(tmp_path / "latency_fp32_20-98.png") as picture:
        assert picture.width > picture.height


def test_stops_when_the_time_is_over(monkeypatch, tmp_path, capsys):
    call(monkeypatch, "--tokens", "16", "--batch", "1,64", "--output", tmp_path, "--seconds", "0")
    assert "1 rows are missing: 0 s were too short" in capsys.readouterr().out
    assert [row["batch"] for row in read_rows(tmp_path / "latency_fp32_16.csv")] == ["1"]


def test_images_of_a_batch_differ_in_length():
    loaded = images.image_source(None, 4, torch.device("cpu"), command_line.make_console())
    built = zoo.Zoo(loaded, torch.device("cpu"), torch.float32, stopwatch.Stopwatch(torch.device("cpu")))
    counts = built.fine_mask(224, 100, 4).flatten(1).sum(1)
    assert int(counts.sum()) == 4 * 17
    assert len(counts.unique()) > 1


def test_refuses_a_model_whose_packed_logits_differ(monkeypatch, tmp_path):
    embed = vit.TOKEN_MODES["packed"]

    def wrong(*arguments):
        tokens, sequences = embed(*arguments)
        return tokens * 1.01, sequences

    monkeypatch.setitem(vit.TOKEN_MODES, "packed", wrong)
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, "--tokens", "64", "--batch", "1", "--output", tmp_path)
    assert caught.value.code.startswith("refused: packed MSViT-S at 224 px differs from masked, so it is not timed")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tokens", "no"), "error: --tokens: expected numbers"),
        (("--batch", "0"), "error: --batch: expected numbers"),
        (("--methods", "dense,fast"), "error: --methods: expected some of dense, masked"),
        (("--images", "/nowhere"), "error: /nowhere: expected a folder of images"),
        (("--device", "tpu"), "error: --device: expected cpu or cuda"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_errors_are_one_line(monkeypatch, options, words):
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, *options)
    assert words in caught.value.code
    assert "\n" not in caught.value.code


def test_graphs_have_no_time_of_their_blocks(tmp_path):
    columns = latency_rows.time_columns([(None, 0.25), (None, 0.5)])
    assert columns["transformer_p50_ms"] is None
    assert columns["all_p80_ms"] == pytest.approx(450)
    rows = [latency_row(method, 64, 1, 2.0) for method in ("dense", "packed", "packed graph")]
    cells = latency_table.cells(rows[2] | {"times_masked": None, "times_dense": 2.0, "share_of_peak": 0.5})
    assert cells[:6] == ["packed graph", "64", "1.28", "", "", "2.00"]
    plot_latency(rows, tmp_path / "a.png")
    plot_latency(rows[:2], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_graphs_need_a_gpu():
    with pytest.raises(SystemExit) as caught:
        latency.main(["--device", "cpu", "--cuda-graph"])
    assert caught.value.code == "error: --cuda-graph: expected a GPU, got a CPU"
