"""Runs that take a fraction of a second, and how to compare and interrupt them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from msvit.training import Config, Run, make_config, trainer
from msvit.training.trainer import Trainer

SMALL = {
    "image_size": 32,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "train_size": 64,
    "test_size": 40,
    "epochs": 2,
    "batch_size": 16,
    "pixel_mean": 0.5,
    "pixel_std": 0.5,
    "gate_target": 0.25,
    "gate_delay_epochs": 0.0,
    "gate_warmup_epochs": 1.0,
}

SEGMENTATION = {
    "image_size": 32,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "train_size": 24,
    "test_size": 10,
    "epochs": 2,
    "batch_size": 8,
}

# Columns that no two runs share.
TIMES = ("images_per_s", "seconds")


def small_config(**values: Any) -> Config:
    """The digits preset at a size for tests: 2 epochs of 4 steps."""
    return make_config("digits", **{**SMALL, **values})


def segmentation_config(**values: Any) -> Config:
    """The preset digits-segmentation at a size for tests: 2 epochs of 3 steps."""
    return make_config("digits-segmentation", **{**SEGMENTATION, **values})


def metrics_of(run: Run) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in run.metrics]


def weights_of(run: Run) -> dict[str, Tensor]:
    return run.model().state_dict() | run.checkpoint().loss_state()


def assert_same_run(found: Run, expected: Run) -> None:
    """Bit for bit: metrics, weights and priors."""
    assert metrics_of(found) == metrics_of(expected)
    assert weights_of(found).keys() == weights_of(expected).keys()
    for name, tensor in weights_of(expected).items():
        assert torch.equal(weights_of(found)[name], tensor), name
    if expected.priors is not None:
        assert found.priors is not None
        assert torch.equal(found.priors, expected.priors)


class InterruptedRunError(Exception):
    """Stands for whatever ends a process between two steps."""


@contextmanager
def interrupted(after_steps: int | None = None, before_checkpoint: int | None = None) -> Iterator[None]:
    """The run inside stops when it has done so many steps, or when it is about to write that checkpoint."""
    train_step, write, done = Trainer._train_step, trainer.write_checkpoint, 0

    def stop_in_steps(self: Trainer, batches: Any) -> dict[str, float]:
        nonlocal done
        if done == after_steps:
            raise InterruptedRunError
        done += 1
        return train_step(self, batches)

    def stop_in_checkpoints(run: Path, step: int, *arguments: Any) -> Path:
        if step == before_checkpoint:
            raise InterruptedRunError
        return write(run, step, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_train_step", stop_in_steps)
        patch.setattr(trainer, "write_checkpoint", stop_in_checkpoints)
        with pytest.raises(InterruptedRunError):
            yield


def image_folder(root: Path, train: int = 10, test: int = 4) -> Path:
    """Two classes of random pictures in train/ and val/."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", train), ("val", test)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(root / split / label / f"{i}.png")
    return root


def paired_folders(root: Path) -> Path:
    """Images of two sizes in train/ and val/ whose left half is a cat, with a border that has no class."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("val", 3)):
        for part in ("images", "annotations"):
            (root / split / part).mkdir(parents=True)
        for i in range(count):
            height, width = (40, 50) if i % 2 else (20, 70)
            pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
            label = np.ones((height, width), dtype=np.uint8)
            label[:, : width // 2] = 0
            label[:2] = 255
            Image.fromarray(pixels.numpy()).save(root / split / "images" / f"{i}.png")
            Image.fromarray(label).save(root / split / "annotations" / f"{i}.png")
    (root / "classes.txt").write_text("cat\ndog\n")
    return root
