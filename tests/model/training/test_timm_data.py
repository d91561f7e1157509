"""Data sets that timm reads by name: Hugging Face folders, and tar files of WebDataset as a stream."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msvit.data import MEAN_COLOUR
from msvit.training import Config, resume_run, start_run
from msvit.training.batches import first_images
from msvit.training.datasets import is_streamed, make_dataset
from tests.model.training.run_helpers import image_folder, interrupted, metrics_of, small_config

SIZE = (32, 32)
VALUES: dict[str, Any] = {"batch_size": 4, "crops": "light", "flip": 0.5, "num_workers": 0, "checkpoint_steps": 1}


@pytest.fixture
def odd_images(tmp_path: Path) -> Path:
    """Eight test images: the first dog is deep grey, the second one transparent and the third one damaged."""
    data = image_folder(tmp_path / "data")
    folder = data / "val" / "dog"
    Image.fromarray(np.full((40, 40), 0x4000, np.uint16)).save(folder / "0.png")
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(folder / "1.png")
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(content[: len(content) // 2])
    return data


def check_odd_images(config: Config, name: str) -> None:
    """They are read as `read_image` reads them, and the damaged one is left out."""
    with pytest.warns(UserWarning, match=f"left out: .*{name}.*: not a readable image"):
        found = first_images(make_dataset(config, False, SIZE), None)
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert [found.images[4, :, 16, 16].tolist(), found.images[5, :, 16, 16].tolist()] == [[0x40] * 3, [*MEAN_COLOUR]]


@pytest.mark.filterwarnings("ignore:left out")
def test_hugging_face(odd_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = odd_images
    config = small_config(data=f"hfds/{data}", data_root=str(tmp_path / "cache"), **VALUES)
    found = start_run(config, tmp_path / "run")
    assert found.derived["num_classes"] == 2
    assert found.derived["steps_per_epoch"] == 5
    check_odd_images(config, "val/dog/2.png")


def shards(images: Path, folder: Path, per_class: dict[str, int]) -> Path:
    """One tar file of PNGs and classes per split, and the file that describes them to timm."""
    folder.mkdir()
    splits = {}
    for split, count in per_class.items():
        with tarfile.open(folder / f"{split}-0000.tar", "w") as tar:
            for number, path in enumerate(sorted((images / split).rglob("*.png"))):
                label = str(int(path.parent.name == "dog")).encode()
                for suffix, content in ((".tiff", path.read_bytes()), (".cls", label)):
                    info = tarfile.TarInfo(f"{number:04d}{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        name = {"train": "train", "val": "validation"}[split]
        splits[name] = {
            "name": name,
            "filenames": [f"{split}-0000.tar"],
            "shard_lengths": [2 * count],
            "num_samples": 2 * count,
        }
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    return folder


@pytest.mark.filterwarnings("ignore:left out")
def test_webdataset_streams_and_resumes(odd_images: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    root = shards(odd_images, tmp_path / "shards", {"train": 10, "val": 4})
    config = small_config(data="wds/digits", data_root=str(root), num_classes=2, **VALUES)
    assert is_streamed(make_dataset(config, True, (32, 32)))
    expected = start_run(config, tmp_path / "whole")
    assert expected.derived["steps_per_epoch"] == 5
    check_odd_images(config, "val-0000.tar, 0006")
    with interrupted(after_steps=7):
        start_run(config, tmp_path / "parts")
    assert metrics_of(resume_run(tmp_path / "parts")) == metrics_of(expected)
