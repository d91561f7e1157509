"""The parts in which the two studies differ."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.experiments.settings import Setting
from bench.marked import Markers
from msvit.training import Run


@dataclass(frozen=True)
class Study:
    """Settings that are trained and compared with one another.

    Attributes:
        name: name of the folder of the runs and of the CSV.
        preset: preset of `msvit train` from which the settings differ.
        settings: rows of the table; the first is the one that others start from.
        common: values of all settings that do not follow the preset.
        quick: values for a quick pass through everything, for tests.
        measure: function of a run and a device that returns the columns of a run.
        text: function of the CSV that returns the text between the markers.
        markers: lines around the text on the page.
    """

    name: str
    preset: str
    settings: tuple[Setting, ...]
    common: Mapping[str, Any]
    quick: dict[str, Any]
    measure: Callable[[Run, torch.device], dict[str, Any]]
    text: Callable[[Path], str]
    markers: Markers

    @property
    def first(self) -> str:
        """Name of the setting that others start from."""
        return self.settings[0].name
