"""Compiled and captured models in bench/latency.py, and the rows of a run that is stopped."""

import functools
import math

import pytest
import timm
import torch

from bench.rows import read_rows, write_rows
from bench.vit import forms, measurement, stopwatch, zoo
from tests.bench.test_latency import call


@pytest.fixture
def small_and_traced(monkeypatch):
    """A small model that is traced as a whole; the traced code runs as it is, because code generation takes minutes."""
    small = functools.partial(timm.create_model, depth=2, embed_dim=64, num_heads=2)
    monkeypatch.setattr(timm, "create_model", small)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def rows_by_method(folder):
    return {row["method"]: row for row in read_rows(folder / "latency_fp32_98.csv")}


def test_compiled_models(monkeypatch, tmp_path, small_and_traced):
    written = []
    monkeypatch.setattr(
        measurement, "write_rows", lambda path, rows: (written.append(len(rows)), write_rows(path, rows))
    )
    names = ["packed", "dense compiled", "packed compiled"]
    call(monkeypatch, "--tokens", 98, "--batch", 1, "--compile", "--methods", ",".join(names), "--output", tmp_path)
    rows = rows_by_method(tmp_path)
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

    monkeypatch.setattr(measurement, "more_rounds", stop)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, "--tokens", 98, "--batch", 1, "--methods", "dense,packed", "--output", tmp_path)
    assert set(rows_by_method(tmp_path)) == {"dense", "packed"}


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
    built = zoo.Zoo(lambda size: images, images.device, torch.float32, stopwatch.Stopwatch(images.device))
    with torch.inference_mode():
        table = [[built.mixed("packed", 98, 2)]]
    (note,) = forms.add_forms(built, {2: table}, math.inf, forms=["packed compiled"])
    assert note.startswith("packed compiled at 98 tokens and batch 2: RefusalError: compiled packed MSViT-S with 98")
    assert words in note
    assert [method.name for method in table[0]] == ["packed"]


def test_refuses_to_write_nothing(monkeypatch, tmp_path, small_and_traced):
    options = ["--compile", "--methods", "packed compiled", "--seconds", 0, "--output", tmp_path]
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, "--tokens", 98, "--batch", 1, *options)
    assert caught.value.code == "refused: none of the methods was timed"
    assert not list(tmp_path.iterdir())


def test_the_headline_compiles_first():
    def row(*names, tokens):
        return [zoo.Method(name, tokens, tokens, 224, 1.0, None) for name in names]

    table = [row("dense", "packed", tokens=count) for count in (64, 98, 196, 576)]
    order = forms._to_compile({1: table, 16: table, 256: table}, forms.FORMS)
    found = [(batch, method.name, method.wanted) for batch, _, method in order]
    pair = [("dense", 196), ("packed", 98)]
    assert found[:6] == [(batch, *each) for batch in (256, 1, 16) for each in pair]
    assert found[6:10] == [(256, "dense", 576), *((256, "packed", count) for count in (64, 196, 576))]
    assert len(found) == 3 * (2 + 4)
    only = forms._to_compile({1: table}, ["packed graph", "dense compiled graph"])
    assert [(method.name, method.wanted) for _, _, method in only] == [("dense", 196), ("dense", 576)]
