"""bench/segmentation.py: its rows and pictures, and the inputs that it refuses."""

import pytest
import torch
from PIL import Image

from bench import segmentation
from bench.readme import segmentation as section
from bench.rows import read_rows, write_rows
from bench.vit.plain_segmenter import PlainSegmenter
from bench.vit.segmenters import MASKS, METHODS, Segmenters
from bench.vit.table4 import TABLE, default_tokens, paper_row
from msvit.models.decoders import MaskTransformer

QUICK = ("--quick", "--device", "cpu")


def test_rows_and_pictures(tmp_path, capsys):
    segmentation.main([*QUICK, "--pixels", "--output", str(tmp_path)])
    rows = read_rows(tmp_path / "segmentation_fp32.csv")
    assert [(row["masks"], row["method"]) for row in rows] == [(mask, name) for mask in MASKS for name in METHODS]
    dense, masked, grid, packed = rows[:4]
    for row in rows:
        times = [float(row[f"{name}_ms"]) for name in ("least", "p20", "p50", "p80")]
        assert times[0] > 0
        assert times == sorted(times)
        assert all(row[name] for name in ("machine", "threads", "torch", "timm", "commit", "date", "share_of_peak"))
        assert not row["paper_ms"]  # of images of another size
    assert (float(dense["tokens"]), float(dense["times_dense_p50"])) == (16, 1)
    # 18 tokens for two images are 4 regions each, of which three are fine: 17 tokens.
    assert [float(row["tokens"]) for row in (masked, grid, packed)] == [8.5] * 3
    assert float(masked["gmacs"]) == float(grid["gmacs"]) > float(packed["gmacs"])
    assert float(masked["encoder_gmacs"]) == float(packed["encoder_gmacs"]) < float(dense["encoder_gmacs"])
    assert float(packed["times_dense_least"]) == pytest.approx(
        float(dense["least_ms"]) / float(packed["least_ms"]), rel=1e-3
    )
    assert "Segmenter on" in capsys.readouterr().out
    with Image.open(tmp_path / "segmentation_fp32.png") as picture:
        assert picture.width > 0


def test_some_methods_have_no_speed_up_over_dense():
    rows = segmentation.run(
        segmentation.parse_arguments([*QUICK, "--methods", "packed grid,packed"]),
        segmentation.make_console(),
    )
    assert [row["method"] for row in rows] == ["packed grid", "packed"]
    assert rows[0]["times_dense_p50"] is None


def test_default_tokens_are_those_of_the_paper():
    assert default_tokens("small", 1024) == [684, 586, 552]
    assert default_tokens("tiny", 16) == [10, 9, 8]
    row = paper_row("small", 552, 512)
    assert (row.target, row.ms("cpu"), row.ms("cuda")) == (0.1, 144.02, 28.5)
    assert paper_row("small", 552, 384) is None


@pytest.mark.parametrize(("size", "plain", "mixed"), [("tiny", 10.4, 5.6), ("small", 31.7, 19.2)])
def test_our_count_of_the_encoder_is_that_of_the_paper(size, plain, mixed):
    images = torch.randint(256, (1, 3, 512, 512), dtype=torch.uint8)
    with torch.inference_mode():
        dense, masked, *_ = Segmenters(size, 512, images, torch.float32).methods([TABLE[size][1].tokens], 1, "grid")
    assert dense.encoder_gmacs == pytest.approx(plain, rel=0.01)
    assert masked.encoder_gmacs == pytest.approx(mixed, rel=0.02)


@pytest.mark.parametrize(
    ("owner", "name", "wrong", "words"),
    [
        (MaskTransformer, "_key_weight", torch.ones_like, "packed Segmenter (tiny) differs from the plain decoder"),
        (MaskTransformer, "decode_grid", torch.neg, "masked Segmenter (tiny) differs from the plain decoder"),
        (PlainSegmenter, "forward", torch.neg, "packed Segmenter (tiny), all fine, differs from dense"),
    ],
    ids=["key weight", "grid decoder", "dense"],
)
def test_refuses_methods_that_disagree(monkeypatch, tmp_path, owner, name, wrong, words):
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments: wrong(right(*arguments)))
    with pytest.raises(SystemExit) as caught:
        segmentation.main([*QUICK, "--output", str(tmp_path)])
    assert caught.value.code.startswith(f"refused: {words}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--models", "huge"], "error: --models: expected some of tiny, small, got 'huge'"),
        (["--tokens", "no"], "error: --tokens: expected numbers"),
        (["--batch", "0"], "error: --batch: expected numbers"),
        (["--methods", "fast"], "error: --methods: expected some of dense, masked, packed grid, packed, got 'fast'"),
        (["--image-size", "100"], "error: --image-size: expected a multiple of 32, got 100"),
        (["--device", "tpu"], "error: --device: expected cpu or cuda"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_errors_are_one_line(options, words):
    with pytest.raises(SystemExit) as caught:
        segmentation.main(options)
    assert words in caught.value.code
    assert "\n" not in caught.value.code


def test_tokens_that_images_cannot_have():
    with pytest.raises(SystemExit) as caught:
        segmentation.main([*QUICK, "--tokens", "17"])
    assert caught.value.code == "error: tokens_per_image: expected 4 (all coarse) to 16 (all fine), got 17"


def test_the_readme_shows_one_image_and_grid_masks(tmp_path):
    def row(method, tokens, milliseconds, **more):
        base = {"model": "Seg-S", "batch": 1, "masks": "grid", "method": method, "wanted_tokens": tokens}
        base |= {"image_size": 512, "tokens": tokens - 2, "gmacs": 18.2, "p50_ms": milliseconds, "machine": "CPU X"}
        base |= {"threads": 2, "torch": "3", "commit": "abc", "date": "2030", "dtype": "fp32"}
        return base | {"times_dense_p50": 700 / milliseconds, "paper_times_dense": 1.75} | more

    rows = [row("dense", 1024, 700), row("masked", 552, 800), row("packed grid", 552, 400), row("packed", 552, 350)]
    rows += [row("packed", 552, 1, **other) for other in ({"model": "Seg-T"}, {"batch": 8}, {"masks": "pixels"})]
    folder = tmp_path / "bench" / "results" / "cpu-x"
    assert section.section(folder.parent) == []
    write_rows(folder / "segmentation_fp32.csv", rows)
    text = section.section(folder.parent)
    assert "| 550 | 18.2 | 700 | 800 | 400 | 350 | 2.00x | 1.75x |" in text
    assert len([line for line in text if line.startswith("| ")]) == 2
    assert "on CPU X (2 threads, fp32, torch 3, commit abc)" in " ".join(text)
