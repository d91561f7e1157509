"""Groups runs that are repetitions of one another, and names the groups."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from msvit.training.config import Config
from msvit.training.runs import Run

# Values that do not distinguish settings: repetitions differ in the seed, and the others change no result.
_IGNORED = ("preset", "seed", "data_seed", "num_workers", "cpu", "checkpoint_steps", "tensorboard")
# Values that come first in a label; others follow if two settings would have the same label.
_TELLING = ("gate", "loss", "gate_target", "tokens_per_image", "center_init", "token_mode", "freeze", "image_size")
# Files of other runs: each repetition starts from its own, so only their presence counts.
_FILES = ("checkpoint", "gate_file")


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in their seed."""

    label: str
    runs: tuple[Run, ...]


def group_runs(runs: Sequence[Run]) -> list[Setting]:
    """Groups runs by setting.

    Args:
        runs: any runs.

    Returns:
        Settings in the order of their first runs, each labelled by the values that distinguish it from the others.
    """
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run.config), []).append(run)
    names = [field.name for field in dataclasses.fields(Config) if field.name not in _IGNORED]
    varying = [name for i, name in enumerate(names) if len({key[i] for key in groups}) > 1]
    varying.sort(key=lambda name: _TELLING.index(name) if name in _TELLING else len(_TELLING))
    configs = [members[0].config for members in groups.values()]
    used = ["gate", "loss"]
    labels = [_label(config, used) for config in configs]
    for name in varying:
        if len(set(labels)) == len(labels):
            break
        used += [name] * (name not in used)
        labels = [_label(config, used) for config in configs]
    return [Setting(label, tuple(members)) for label, members in zip(labels, groups.values(), strict=True)]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, which is 0 for a single value; both are NaN if a value is NaN."""
    if any(map(math.isnan, values)):
        return math.nan, math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _key(config: Config) -> tuple[object, ...]:
    values = config.to_dict()
    return tuple(
        values[name] is not None if name in _FILES else values[name] for name in values if name not in _IGNORED
    )


def _label(config: Config, names: Sequence[str]) -> str:
    values = config.to_dict()
    parts = []
    for name in names:
        value = bool(values[name]) if name in _FILES else values[name]
        if value in (None, "none"):
            continue
        if name in ("gate", "loss", "token_mode"):
            parts.append(str(value))
        elif isinstance(value, bool):
            parts.extend([name.replace("_", " ")] * value)
        else:
            parts.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts) or "default"
