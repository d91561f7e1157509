"""Batches that depend only on the seed, the epoch and their number, so that an interrupted epoch can continue.

Images are permuted once per epoch, each process takes its part of the permutation, and augmentation is seeded per
image. An image that cannot be read keeps its place in the order and is left out of its batch, which is smaller by one
image each time. Streamed data sets have no index, so the batches before a position are read and dropped. Their order is
the same if the number of worker processes is the same.
"""

import hashlib
import itertools
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.data.loader import fast_collate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, get_worker_info

from msvit.data.decoding import UnreadableImageError
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
        labels: int64 [n], or uint8 [n, H, W] with a class for each pixel.
        indices: n indices into the data set; None if it is streamed.
        left_out: why other images of the batch cannot be read; empty if the data set is streamed.
    """

    images: Tensor
    labels: Tensor
    indices: list[int] | None
    left_out: tuple[str, ...] = ()


class FirstImages(NamedTuple):
    """The first images of a data set.

    Attributes:
        images: uint8 [n, 3, H, W], on the CPU.
        labels: int64 [n], on the CPU.
        left_out: number of images among them that cannot be read.
    """

    images: Tensor
    labels: Tensor
    left_out: int


def in_memory(dataset: Any) -> Any:
    """Returns the data set as `InMemory` if its images and labels are tensors, else the data set itself."""
    images, labels = getattr(dataset, "images", None), getattr(dataset, "labels", None)
    return InMemory(images, labels) if isinstance(images, Tensor) and isinstance(labels, Tensor) else dataset


def first_of(dataset: Any, count: int | None) -> Any:
    """The first `count` images of a map-style data set, all for None."""
    if count is None or count >= len(dataset):
        return dataset
    found = in_memory(dataset)
    if isinstance(found, InMemory):
        return InMemory(found.images[:count], found.labels[:count])
    return Subset(found, range(count))


def first_images(dataset: Any, count: int | None, num_workers: int = 0) -> FirstImages:
    """Reads the first images of a data set. Those that cannot be read are named in warnings.

    Args:
        dataset: result of `Task.dataset`, or `InMemory`.
        count: largest number of images to read; None for all.
        num_workers: number of worker processes that read images; 0 reads them in this process.

    Returns:
        The images and their labels.

    Raises:
        ValueError: the data set has no readable image.
    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    found, left_out = 0, 0
    for batch in ordered_batches(in_memory(dataset), 64, num_workers, Share()):
        left_out += len(batch.left_out)
        if not len(batch.labels):
            continue
        images.append(batch.images)
        labels.append(batch.labels)
        found += len(batch.images)
        if count is not None and found >= count:
            break
    if not images:
        raise ValueError("expected at least one image, got none" + f" of {left_out} files" * (left_out > 0))
    return FirstImages(torch.cat(images)[:count], torch.cat(labels)[:count], left_out)


def calibration_images(dataset: Any) -> Tensor:
    """Reads the images that `calibrate` uses, uint8 [n, 3, H, W]."""
    return first_images(dataset, _CALIBRATION_IMAGES).images


def seed_of(*parts: int) -> int:
    """Makes a seed for torch from several numbers; nearby numbers give unrelated seeds."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def steps_per_epoch(dataset: Any, config: Config) -> int:
    """Counts the full batches in a training set.

    Args:
        dataset: result of `Task.dataset`, or `InMemory`.
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
        dataset: result of `Task.dataset`, or `InMemory`.
        config: values of the run.
        epoch: number of the epoch, from 0.
        first_step: number of finished steps to skip.
        share: part of the work that this process does.

    Yields:
        `config.accumulate` batches for each step, each of `batch_size / (accumulate * world_size)` images, less those
        that cannot be read, which are named in warnings.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes times the number of accumulated parts,
            or no image of a batch can be read.
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
    for batch in _indexed(dataset, mine.flatten(0, 1).tolist(), config.num_workers, seed_of(config.seed, epoch, 1)):
        if not len(batch.labels):
            raise ValueError(f"--batch-size: expected a readable image in each batch, got none: {batch.left_out[0]}")
        yield batch


def ordered_batches(dataset: Any, batch_size: int, num_workers: int, share: Share) -> Iterator[Batch]:
    """Yields this process's share of a data set, in order.

    Args:
        dataset: result of `Task.dataset`, or `InMemory`.
        batch_size: images per batch; the last batch may have fewer.
        num_workers: number of worker processes that read images; 0 reads them in this process.
        share: part of the work that this process does; a streamed data set divides itself.

    Yields:
        Batches of at most `batch_size` images, less those that cannot be read, which are named in warnings; a batch may
        have no image.
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
    for images, labels, indices, left_out in loader:
        for reason in left_out:
            warnings.warn(f"left out: {reason}", stacklevel=2)
        yield Batch(images, labels, indices, left_out)


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


class _Unread(NamedTuple):
    """Stands for an image that cannot be read."""

    reason: str


class _Seeded(Dataset["tuple[Any, int | Tensor, int] | _Unread"]):
    """Seeds random numbers before each image, so that its augmentation does not depend on the process or the time."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, index: int) -> tuple[Any, int | Tensor, int] | _Unread:
        _seed_augmentation(self.seed, index)
        try:
            image, label = self.dataset[index]
        except UnreadableImageError as error:
            return _Unread(str(error))
        return image, label if isinstance(label, Tensor) and label.ndim else int(label), index


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


def _stacked(pairs: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch; fast_collate takes no label with several values."""
    if isinstance(pairs[0][1], Tensor):
        images, labels = zip(*pairs, strict=True)
        return torch.stack(images), torch.stack(labels)
    images, labels = fast_collate(pairs)
    return images, labels


def _collate(items: list[tuple[Any, int | Tensor, int] | _Unread]) -> tuple[Tensor, Tensor, list[int], tuple[str, ...]]:
    left_out = tuple(item.reason for item in items if isinstance(item, _Unread))
    read = [item for item in items if not isinstance(item, _Unread)]
    if not read:
        return torch.empty(0, 3, 0, 0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), [], left_out
    images, labels = _stacked([(image, label) for image, label, _ in read])
    return images, labels, [index for _, _, index in read], left_out
