"""bench/latency.py: what --tokens means, the rows and pictures it leaves, and what it refuses."""

import csv
import functools
import math
import sys

import common
import latency
import pytest
import readme_gpu
import timm
import torch
import vit_graphs
import vit_methods
from PIL import Image
from vit_methods import image_size, parse_tokens

from msvit.data import sample_photographs
from msvit.models import vit

SQUARES = [64, 100, 144, 196, 256, 324, 400, 484, 576]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("64..576", SQUARES),
        ("60..200", [64, 100, 144, 196]),
        ("98", [98]),
        ("196,64,100", [64, 100, 196]),
        ("98,64..144", [64, 98, 100, 144]),
        ("64..64", [64]),
        ("1..4", [4]),
    ],
)
def test_tokens(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "--tokens: expected numbers such as 196"),
        ("many", "--tokens: expected numbers such as 196"),
        ("64..", "--tokens: expected numbers such as 196"),
        ("64...576", "--tokens: expected numbers such as 196"),
        ("1.5", "--tokens: expected numbers such as 196"),
        ("64,,100", "--tokens: expected numbers such as 196"),
        ("0", "--tokens: expected numbers from 1 upwards"),
        ("-4", "--tokens: expected numbers from 1 upwards"),
        ("576..64", "ranges with the smaller first"),
        ("65..99", "65..99 contains no square of an even number"),
    ],
)
def test_wrong_tokens(text, words):
    with pytest.raises(ValueError, match=words):
        parse_tokens(text)


@pytest.mark.parametrize(("tokens", "size"), [(49, 224), (196, 224), (197, 384), (576, 384)])
def test_image_size(tokens, size):
    assert image_size(tokens) == size


@pytest.mark.parametrize(("tokens", "words"), [(48, "at least 49 at 224 px"), (577, "at most 576 at 384 px")])
def test_impossible_numbers_of_tokens(tokens, words):
    with pytest.raises(ValueError, match=words):
        image_size(tokens)


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
    monkeypatch.setattr(latency, "MAX_SAMPLES", 1)
    monkeypatch.setattr(sys, "argv", ["latency.py", "--device", "cpu", "--seconds", "600", *map(str, options)])
    latency.main()


def test_rows_and_pictures(monkeypatch, tmp_path, capsys, photographs):
    call(monkeypatch, "--tokens", "20,98", "--batch", "1,3", "--images", photographs, "--output", tmp_path)
    printed = capsys.readouterr().out
    assert "cut.png: not a readable image" in printed
    assert "2 images for batches of 3: they are repeated" in printed
    assert "20 tokens: MSViT-S has at least 49 at 224 px, all coarse; left out" in printed
    with (tmp_path / "latency_fp32_20-98.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
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
    with (tmp_path / "latency_fp32_16.csv").open(newline="") as file:
        assert [row["batch"] for row in csv.DictReader(file)] == ["1"]


def test_images_of_a_batch_differ_in_length():
    images = latency.image_source(None, 4, torch.device("cpu"), common.make_console())
    zoo = latency.Zoo(images, torch.device("cpu"), torch.float32, latency.Stopwatch(torch.device("cpu")))
    counts = zoo.fine_mask(224, 100, 4).flatten(1).sum(1)
    assert int(counts.sum()) == 4 * 17
    assert len(counts.unique()) > 1


@pytest.fixture
def small_and_traced(monkeypatch):
    """A small model. It is traced as a whole, and what was traced runs as it is: generating code takes minutes."""
    small = functools.partial(timm.create_model, depth=2, embed_dim=64, num_heads=2)
    monkeypatch.setattr(timm, "create_model", small)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def read_rows(folder):
    with (folder / "latency_fp32_98.csv").open(newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_compiled_models(monkeypatch, tmp_path, small_and_traced):
    written = []
    write = common.write_csv
    monkeypatch.setattr(common, "write_csv", lambda path, rows: (written.append(len(rows)), write(path, rows)))
    names = ["packed", "dense compiled", "packed compiled"]
    call(monkeypatch, "--tokens", 98, "--batch", 1, "--compile", "--methods", ",".join(names), "--output", tmp_path)
    rows = read_rows(tmp_path)
    assert sorted(rows) == sorted(names)
    compiled = float(rows["dense compiled"]["all_p50_ms"])
    for row in rows.values():
        assert float(row["times_compiled"]) == pytest.approx(compiled / float(row["all_p50_ms"]), rel=1e-3)
    assert rows["packed compiled"]["reference_tokens"] == rows["dense compiled"]["wanted_tokens"] == "196"
    assert not rows["packed compiled"]["transformer_p50_ms"]
    # What there is so far stands in the file before anything compiles, and after each model that did.
    assert written[:3] == [1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"latency_fp32_98.csv", "latency_fp32_98.png"}


def test_a_run_that_is_cut_off_leaves_its_rows(monkeypatch, tmp_path, small_and_traced):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(latency, "more_rounds", stop)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, "--tokens", 98, "--batch", 1, "--methods", "dense,packed", "--output", tmp_path)
    assert set(read_rows(tmp_path)) == {"dense", "packed"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda logits, mask: (logits * 1.01, mask), "differs from uncompiled, so it is not timed: logits: error"),
        (lambda logits, mask: (logits, ~mask), "is not timed: its regions score"),
    ],
    ids=["logits", "regions"],
)
def test_a_compiled_model_that_differs_is_left_out(monkeypatch, small_and_traced, wrong, words):
    monkeypatch.setattr(torch, "compile", lambda function, **options: lambda images: wrong(*function(images)))
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    zoo = latency.Zoo(lambda size: images, images.device, torch.float32, latency.Stopwatch(images.device))
    with torch.inference_mode():
        table = [[zoo.mixed("packed", 98, 2)]]
    (note,) = vit_graphs.add_forms(zoo, {2: table}, math.inf, forms=["packed compiled"])
    assert note.startswith("packed compiled at 98 tokens and batch 2: RefusalError: compiled packed MSViT-S with 98")
    assert words in note
    assert [method.name for method in table[0]] == ["packed"]


def test_refuses_to_write_nothing(monkeypatch, tmp_path, small_and_traced):
    options = ["--compile", "--methods", "packed compiled", "--seconds", 0, "--output", tmp_path]
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, "--tokens", 98, "--batch", 1, *options)
    assert caught.value.code == "refused: none of the methods was timed"
    assert not list(tmp_path.iterdir())


def test_the_readme_shows_the_fastest_form():
    def row(method, milliseconds, tokens="98", times=""):
        wanted = {"method": method, "batch": "256", "wanted_tokens": tokens, "gmacs": "2"}
        return wanted | {"all_p50_ms": str(milliseconds), "times_compiled": times}

    rows = [row("packed", 9), row("packed graph", 7, times="2"), row("packed compiled", 8)]
    rows += [row("dense", 20), row("dense graph", 18), row("packed compiled graph", 5, times="3")]
    assert "| 98 | 2.00 |  |  | 18 |  |  | 5 | 6.0 |" in readme_gpu.latency_lines(rows)
    sentence = "At batch 256 packed MSViT-S with 98 tokens (compiled graph) is 3.00x as fast as the compiled ViT-S/16"
    assert readme_gpu.latency_lines(rows)[-1] == f"{sentence} with 196."


def test_the_headline_compiles_first():
    def row(*names, tokens):
        return [vit_methods.Method(name, tokens, tokens, 224, 1.0, None) for name in names]

    table = [row("dense", "packed", tokens=count) for count in (64, 98, 196, 576)]
    order = vit_graphs._to_compile({1: table, 16: table, 256: table}, vit_graphs.FORMS)
    found = [(batch, method.name, method.wanted) for batch, _, method in order]
    pair = [("dense", 196), ("packed", 98)]
    assert found[:6] == [(batch, *each) for batch in (256, 1, 16) for each in pair]
    assert found[6:10] == [(256, "dense", 576), *((256, "packed", count) for count in (64, 196, 576))]
    assert len(found) == 3 * (2 + 4)
    only = vit_graphs._to_compile({1: table}, ["packed graph", "dense compiled graph"])
    assert [(method.name, method.wanted) for _, _, method in only] == [("dense", 196), ("dense", 576)]


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
