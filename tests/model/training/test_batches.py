"""Batches are a function of seed, epoch and position alone."""

from collections import Counter
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from msvit.training.batches import Batch, Share, ordered_batches, seed_of, steps_per_epoch, training_batches
from msvit.training.datasets import InMemory, make_dataset
from tests.model.training.run_helpers import image_folder, small_config


def dataset(size: int = 20) -> InMemory:
    images = torch.arange(size, dtype=torch.uint8).view(size, 1, 1, 1).expand(size, 3, 2, 2)
    return InMemory(images, torch.arange(size))


class Stream(IterableDataset[tuple[Tensor, int]]):
    """A small version of timm's streamed data sets, shuffled by the epoch."""

    epoch = 0

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(self.epoch)
        for i in torch.randperm(21, generator=generator).tolist():
            yield torch.full((3, 2, 2), i, dtype=torch.uint8), i

    def __len__(self) -> int:
        return 21

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def set_loader_cfg(self, num_workers: int | None = None) -> None:
        pass


def labels(batches: list[Batch]) -> list[list[int]]:
    return [batch.labels.tolist() for batch in batches]


@pytest.mark.parametrize("data", [dataset(21), Stream()], ids=["indexed", "streamed"])
def test_every_image_once_in_an_order_of_the_epoch(data: Any) -> None:
    config = small_config(batch_size=4)
    first, second = (labels(list(training_batches(data, config, epoch, 0, Share()))) for epoch in (0, 1))
    assert steps_per_epoch(data, config) == len(first) == 5, "the images that fill no batch are left out"
    assert max(Counter(chain(*first)).values()) == 1
    assert first != second
    assert first == labels(list(training_batches(data, config, 0, 0, Share())))
    assert first[3:] == labels(list(training_batches(data, config, 0, 3, Share())))


def test_seed_changes_the_order() -> None:
    orders = [labels(list(training_batches(dataset(), small_config(seed=s), 0, 0, Share()))) for s in (0, 1)]
    assert orders[0] != orders[1]
    assert len({seed_of(a, b, c) for a in range(5) for b in range(5) for c in range(5)}) == 125


def test_processes_and_accumulation_share_the_same_batches() -> None:
    """A step sees the same images however they are divided."""
    whole = labels(list(training_batches(dataset(), small_config(batch_size=8), 0, 0, Share())))
    divided = small_config(batch_size=8, accumulate=2)
    parts = [labels(list(training_batches(dataset(), divided, 0, 0, Share(rank, 2)))) for rank in range(2)]
    assert [len(part) for part in parts] == [4, 4]
    for step, expected in enumerate(whole):
        assert [*chain(*(part[2 * step + i] for i in range(2) for part in parts))] == expected


def test_all_test_images_once_in_order() -> None:
    parts = [labels(list(ordered_batches(dataset(), 4, 0, Share(rank, 3)))) for rank in range(3)]
    assert sorted(chain(*chain(*parts))) == list(range(20))
    assert [*chain(*labels(list(ordered_batches(dataset(), 7, 0, Share()))))] == list(range(20))


def test_folders_give_uint8_images_and_their_indices(tmp_path) -> None:
    config = small_config(data=str(image_folder(tmp_path)), batch_size=4, crops="light")
    data = make_dataset(config, True, (32, 32))
    batch = next(training_batches(data, config, 0, 0, Share()))
    assert (batch.images.dtype, [*batch.images.shape]) == (torch.uint8, [4, 3, 32, 32])
    assert batch.indices is not None
    assert batch.labels.tolist() == [data.reader.samples[i][1] for i in batch.indices]


def test_errors() -> None:
    with pytest.raises(ValueError, match="--batch-size: expected at most the 20 training images, got 64"):
        steps_per_epoch(dataset(), small_config(batch_size=64))
    with pytest.raises(ValueError, match=r"--batch-size: expected a multiple of 6 \(3 processes x 2 accumulated"):
        next(training_batches(dataset(), small_config(batch_size=4, accumulate=2), 0, 0, Share(0, 3)))


def test_a_stream_that_ends_too_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "__len__", lambda self: 30)
    with pytest.raises(ValueError, match="--data digits: expected 7 batches in epoch 2, got 6"):
        list(training_batches(Stream(), small_config(batch_size=4), 1, 0, Share()))
