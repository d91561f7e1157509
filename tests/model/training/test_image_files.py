"""Class folders: every image suffix and mode as `read_image` reads it, and files that cannot be read."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import msvit
from msvit.data import read_image
from msvit.training import resume_run, start_run
from msvit.training.batches import Share, first_images, training_batches
from msvit.training.datasets import class_names, make_dataset
from msvit.training.evaluation_job import evaluate_checkpoint
from msvit.training.image_files import ClassFolders
from tests.model.data.image_cases import CASES, write_cases
from tests.model.training.run_helpers import assert_same_run, image_folder, interrupted, small_config

VALUES: dict[str, Any] = {"batch_size": 5, "num_workers": 0}
SIZE = (32, 32)


def damage(path: Path) -> Path:
    """Cuts a file in the middle of its pixels."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """20 training and 8 test images, of which the second cat cannot be read in either split."""
    root = image_folder(tmp_path / "data")
    for split in ("train", "val"):
        damage(root / split / "cat" / "1.png")
    return root


def test_every_suffix_and_mode_is_read_as_by_read_image(tmp_path: Path) -> None:
    """Each format is in a class of its own, so that none may vanish."""
    for split in ("train", "val"):
        for name, path in write_cases(tmp_path / "made").items():
            (tmp_path / split / path.suffix[1:].lower()).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / split / path.suffix[1:].lower() / name)
    config = small_config(data=str(tmp_path), **VALUES)
    for train in (True, False):
        dataset = make_dataset(config, train, SIZE)
        assert len(dataset) == len(CASES)
        assert class_names(dataset) == sorted({Path(name).suffix[1:].lower() for name in CASES})
        for (path, label), (image, found) in zip(dataset.reader.samples, dataset, strict=False):
            assert found == label
            centre = torch.as_tensor(image)[:, 12:20, 12:20]
            assert torch.equal(centre, read_image(path, 24)[:, 8:16, 8:16]), path


def test_unreadable_test_images_are_named_and_not_counted(damaged: Path, tmp_path: Path) -> None:
    config = small_config(data=str(damaged), **VALUES)
    with pytest.warns(UserWarning, match=r"left out: .*val/cat/1.png: not a readable image"):
        found = first_images(make_dataset(config, False, SIZE), None)
    assert (len(found.images), found.labels.tolist(), found.left_out) == (7, [0, 0, 0, 1, 1, 1, 1], 1)
    model = msvit.create_model("msvit_tiny_patch8_16_32", embed_dim=32, depth=1, num_heads=2, num_classes=2)
    msvit.save_checkpoint(model, tmp_path / "model.safetensors")
    values = {"model": "msvit_tiny_patch8_16_32", "embed_dim": 32, "depth": 1, "num_heads": 2, "num_workers": 2}
    with pytest.warns(UserWarning, match=r"left out: .*val/cat/1.png"):
        _, scores = evaluate_checkpoint(tmp_path / "model.safetensors", {"data": str(damaged), **values})
    assert (scores.images, scores.left_out) == (7, 1)
    (damaged / "val" / "cat" / "1.png").unlink()
    _, expected = evaluate_checkpoint(tmp_path / "model.safetensors", {"data": str(damaged), **values})
    assert scores.columns == expected.columns


@pytest.mark.filterwarnings("ignore:left out")
def test_an_unreadable_training_image_shrinks_its_batch_alone(damaged: Path) -> None:
    config = small_config(data=str(damaged), **VALUES)
    dataset = make_dataset(config, True, SIZE)
    with pytest.warns(UserWarning, match=r"left out: .*train/cat/1.png"):
        batches = list(training_batches(dataset, config, 0, 0, Share()))
    whole = {1, *(index for batch in batches for index in batch.indices or [])}
    assert (sorted(len(batch.labels) for batch in batches), whole) == ([4, 5, 5, 5], set(range(20)))
    assert [batch.left_out[0].split(":")[0] for batch in batches if batch.left_out] == [
        str(damaged / "train" / "cat" / "1.png")
    ]
    with pytest.raises(ValueError, match=r"expected a readable image in each batch, got none: .*cat/1.png"):
        list(training_batches(dataset, config.replace(batch_size=1), 0, 0, Share()))


@pytest.mark.filterwarnings("ignore:left out")
def test_a_run_with_an_unreadable_image_resumes(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(data=str(damaged), checkpoint_steps=1, epochs=1, **VALUES)
    expected = start_run(config, tmp_path / "whole")
    printed = capsys.readouterr().out
    assert "20 training images, 8 test images" in printed
    assert "training images left out by this process: 1" in printed
    with interrupted(after_steps=2):
        start_run(config, tmp_path / "parts")
    assert_same_run(resume_run(tmp_path / "parts"), expected)


def test_limit_on_pixels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--max-pixels: expected 1 or more, got 0"):
        small_config(max_pixels=0)
    config = small_config(data=str(image_folder(tmp_path)), max_pixels=1999, **VALUES)
    with pytest.raises(ValueError, match=r"expected at most 1,999 pixels, got 50 x 40 = 2,000; --max-pixels"):
        make_dataset(config, True, SIZE)[0]


def test_what_class_folders_leave_out_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data") / "train"
    (root / ".cache").mkdir()
    shutil.copy(root / "cat" / "0.png", root / ".cache" / "0.png")
    shutil.copy(root / "cat" / "0.png", root / "cat" / "._0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ClassFolders(root, "any")) == 20
    for name in ("horse/0.heic", "cat/notes.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    (root / "empty").mkdir()
    with pytest.warns(UserWarning, match="are left out") as caught:
        found = ClassFolders(root, "any")
    assert [*found.class_to_idx] == ["cat", "dog"]
    assert [str(warning.message).removeprefix(f"{root}: ") for warning in caught] == [
        "files without an image suffix are left out: 2 (cat/notes.txt, horse/0.heic)",
        "folders without an image are left out: 2 (empty, horse)",
    ]


def test_links_to_class_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mouse").symlink_to(image_folder(tmp_path / "data") / "train" / "cat")
    (tmp_path / "data" / "train" / "cat" / "loop").symlink_to(tmp_path / "data")
    assert ClassFolders(tmp_path / "links", "any").samples[0] == (tmp_path / "links" / "mouse" / "0.png", 0)
    assert len(ClassFolders(tmp_path / "data" / "train", "any")) == 20


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("val/horse/0.png", "split validation: expected only classes of the training images, got horse"),
        ("train/stray.png", "split train: expected images only in class folders, got .*stray.png"),
    ],
)
def test_images_without_a_known_class_are_refused(tmp_path: Path, name: str, words: str) -> None:
    root = image_folder(tmp_path)
    (root / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(root / name)
    with pytest.raises(ValueError, match=words):
        make_dataset(small_config(data=str(root)), name.startswith("train"), SIZE)
