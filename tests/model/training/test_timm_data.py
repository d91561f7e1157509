"""Data sets that timm reads by name: Hugging Face folders, and tar files of WebDataset as a stream."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from msvit.training import resume_run, start_run
from msvit.training.datasets import is_streamed, make_dataset
from tests.model.training.run_helpers import image_folder, interrupted, metrics_of, small_config

VALUES: dict[str, Any] = {"batch_size": 4, "crops": "light", "flip": 0.5, "num_workers": 0, "checkpoint_steps": 1}


def test_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = image_folder(tmp_path / "data")
    config = small_config(data=f"hfds/{data}", data_root=str(tmp_path / "cache"), **VALUES)
    found = start_run(config, tmp_path / "run")
    assert found.derived["num_classes"] == 2
    assert found.derived["steps_per_epoch"] == 5


def shards(folder: Path, per_class: dict[str, int]) -> Path:
    """One tar file of PNGs and classes per split, and the file that describes them to timm."""
    images = image_folder(folder / "images", per_class["train"], per_class["val"])
    splits = {}
    for split, count in per_class.items():
        with tarfile.open(folder / f"{split}-0000.tar", "w") as tar:
            for number, path in enumerate(sorted((images / split).rglob("*.png"))):
                label = str(int(path.parent.name == "dog")).encode()
                for suffix, content in ((".png", path.read_bytes()), (".cls", label)):
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


def test_webdataset_streams_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    (tmp_path / "data").mkdir()
    root = shards(tmp_path / "data", {"train": 10, "val": 4})
    config = small_config(data="wds/digits", data_root=str(root), num_classes=2, **VALUES)
    assert is_streamed(make_dataset(config, True, (32, 32)))
    expected = start_run(config, tmp_path / "whole")
    assert expected.derived["steps_per_epoch"] == 5
    with interrupted(after_steps=7):
        start_run(config, tmp_path / "parts")
    assert metrics_of(resume_run(tmp_path / "parts")) == metrics_of(expected)
