"""Batches that depend only on the seed, the epoch and their number, so that an interrupted epoch can continue.

Images are permuted once per epoch, each process takes its part of the permutation, and augmentation is seeded per
image. Streamed data sets have no index, so the batches before a position are read and dropped. Their order is the same
if the number of worker processes is the same.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.loader import fast_collate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from msvit.training.config import Config
from msvit.training.datasets import InMemory, is_streamed

# Number of images from which the threshold of the entropy gate is computed.
_CALIBRATION_IMAGES = 512


@dataclass(frozen=True)
class Share:
    """The part of the work that this process does."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class Batch:
    """Images of a data set.

    Attributes:
        images: uint8 [n, 3, H, W].
        labels: int64 [n].
        indices: n indices into the data set; None if it is streamed.
    """

    images: Tensor
    labels: Tensor
    indices: list[int] | None


def in_memory(dataset: Any) -> Any:
    """Returns the data set as `InMemory` if its images and labels are tensors, else the data set itself."""
    images, labels = getattr(dataset, "images", None), getattr(dataset, "labels", None)
    return InMemory(images, labels) if isinstance(images, Tensor) and isinstance(labels, Tensor) else dataset


def first_images(dataset: Any, count: int | None, num_workers: int = 0) -> tuple[Tensor, Tensor]:
    """Reads the first images of a data set.

    Args:
        dataset: result of `make_dataset`, or `InMemory`.
        count: largest number of images to read; None for all.
        num_workers: number of worker processes that read images; 0 reads them in this process.

    Returns:
        The images, uint8 [n, 3, H, W], and their labels, int64 [n], on the CPU.

    Raises:
        ValueError: the data set has no image.
    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    found = 0
    for batch in ordered_batches(in_memory(dataset), 64, num_workers, Share()):
        images.append(batch.images)
        labels.append(batch.labels)
        found += len(batch.images)
        if count is not None and found >= count:
            break
    if not images:
        raise ValueError("expected at least one image, got none")
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def calibration_images(dataset: Any) -> Tensor:
    """Reads the images that `calibrate` uses, uint8 [n, 3, H, W]."""
    return first_images(dataset, _CALIBRATION_IMAGES)[0]


def seed_of(*parts: int) -> int:
    """Makes a seed for torch from several numbers; nearby numbers give unrelated seeds."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def steps_per_epoch(dataset: Any, config: Config) -> int:
    """Counts the full batches in a training set.

    Args:
        dataset: result of `make_dataset`, or `InMemory`.
        config: values of the run.

    Returns:
        The number, 1 or more.

    Raises:
        ValueError: the data set has fewer images than a batch.
    """
    size = len(dataset)
    if size < config.batch_size:
        raise ValueError(f"--batch-size: expected at most the {size} training images, got {config.batch_size}")
    return size // config.batch_size


def images_per_part(config: Config, share: Share) -> int:
    """Divides a batch over the processes and the accumulated parts.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes times the number of accumulated parts.
    """
    parts = config.accumulate * share.world_size
    if config.batch_size % parts:
        raise ValueError(
            f"--batch-size: expected a multiple of {parts} ({share.world_size} processes x {config.accumulate} "
            f"accumulated parts), got {config.batch_size}"
        )
    return config.batch_size // parts


def training_batches(dataset: Any, config: Config, epoch: int, first_step: int, share: Share) -> Iterator[Batch]:
    """Yields this process's share of the batches of an epoch.

    Args:
        dataset: result of `make_dataset`, or `InMemory`.
        config: values of the run.
        epoch: number of the epoch, from 0.
        first_step: number of finished steps to skip.
        share: part of the work that this process does.

    Yields:
        `config.accumulate` batches for each step, each of `batch_size / (accumulate * world_size)` images.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes times the number of accumulated parts.
    """
    part_size = images_per_part(config, share)
    steps = steps_per_epoch(dataset, config)
    if is_streamed(dataset):
        yield from _streamed(dataset, config, epoch, first_step, steps, part_size)
        return
    generator = torch.Generator().manual_seed(seed_of(config.seed, epoch, 0))
    order = torch.randperm(len(dataset), generator=generator)[: steps * config.batch_size]
    # [steps, accumulate, world_size, part_size]
    mine = order.view(steps, config.accumulate, share.world_size, part_size)[first_step:, :, share.rank]
    yield from _indexed(dataset, mine.flatten(0, 1).tolist(), config.num_workers, seed_of(config.seed, epoch, 1))


def ordered_batches(dataset: Any, batch_size: int, num_workers: int, share: Share) -> Iterator[Batch]:
    """Yields this process's share of a data set, in order.

    Args:
        dataset: result of `make_dataset`, or `InMemory`.
        batch_size: images per batch; the last batch may have fewer.
        num_workers: number of worker processes that read images; 0 reads them in this process.
        share: part of the work that this process does; a streamed data set divides itself.

    Yields:
        Batches of at most `batch_size` images.
    """
    if is_streamed(dataset):
        yield from _stream(dataset, batch_size, num_workers, 0)
        return
    mine = range(share.rank, len(dataset), share.world_size)
    indices = [list(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size)]
    yield from _indexed(dataset, indices, num_workers, 0)


def _indexed(dataset: Any, batches: list[list[int]], num_workers: int, seed: int) -> Iterator[Batch]:
    if isinstance(dataset, InMemory):
        for indices in batches:
            yield Batch(*dataset[indices], indices)
        return
    loader = DataLoader(
        _Seeded(dataset, seed),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )
    for images, labels, indices in loader:
        yield Batch(images, labels, indices.tolist())


def _streamed(dataset: Any, config: Config, epoch: int, first_step: int, steps: int, part_size: int) -> Iterator[Batch]:
    dataset.set_epoch(epoch)
    stream = _stream(dataset, part_size, config.num_workers, seed_of(config.seed, epoch, 1))
    wanted, found = steps * config.accumulate, 0
    for batch in itertools.islice(stream, wanted):
        found += 1
        if found > first_step * config.accumulate:
            yield batch
    if found < wanted:
        raise ValueError(f"--data {config.data}: expected {wanted} batches in epoch {epoch + 1}, got {found}")


def _stream(dataset: Any, batch_size: int, num_workers: int, seed: int) -> Iterator[Batch]:
    dataset.set_loader_cfg(num_workers=num_workers)
    loader = DataLoader(
        _SeededStream(dataset, seed),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=fast_collate,
        pin_memory=torch.cuda.is_available(),
    )
    for images, labels in loader:
        yield Batch(images, labels, None)


class _Seeded(Dataset[tuple[Any, int, int]]):
    """Seeds random numbers before each image, so that its augmentation does not depend on the process or the time."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        _seed_augmentation(self.seed, index)
        image, label = self.dataset[index]
        return image, int(label), index


class _SeededStream(IterableDataset[tuple[Any, int]]):
    """Seeds random numbers before each image of a stream, by the number of the image in the worker process."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        worker = get_worker_info()
        items = iter(self.dataset)
        for number in itertools.count():
            _seed_augmentation(self.seed, 0 if worker is None else worker.id, number)
            try:
                yield next(items)
            except StopIteration:
                return


def _seed_augmentation(*parts: int) -> None:
    """Seeds both generators that timm's transforms draw from."""
    seed = seed_of(*parts)
    random.seed(seed)
    torch.manual_seed(seed)


def _collate(items: list[tuple[Any, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    images, labels = fast_collate([(image, label) for image, label, _ in items])
    return images, labels, torch.tensor([index for _, _, index in items])
