"""The time of a model's call, and of its transformer blocks within it."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Stopwatch:
    """Measures the time of a whole call and, by marks that hooks set, of its transformer blocks.

    Attributes:
        paused: whether marks are disabled, as during the capture of a graph, which would contain the events.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.moments: dict[str, Any] = {}
        self.paused = False

    def watch(self, model: Any) -> Any:
        """The model, with hooks that mark the start of its first block and the end of its last block."""
        model.blocks[0].register_forward_pre_hook(lambda *_: self.mark("first_block"))
        model.blocks[-1].register_forward_hook(lambda *_: self.mark("last_block"))
        return model

    def mark(self, name: str) -> None:
        """Records the current time, on a GPU as an event of the stream."""
        if self.paused:
            return
        if self.device.type == "cuda":
            self.moments[name] = torch.cuda.Event(enable_timing=True)
            self.moments[name].record()
        else:
            self.moments[name] = time.perf_counter()

    @torch.inference_mode()
    def time(self, call: Callable[[Tensor], Any], images: Tensor) -> tuple[float | None, float]:
        """Seconds of the blocks, None if no hook ran (a compiled model, a graph), and seconds of the whole call."""
        self.moments.clear()
        self.mark("start")
        call(images)
        self.mark("end")
        if self.device.type == "cuda":
            self.moments["end"].synchronize()
        blocks = self._between("first_block", "last_block") if "last_block" in self.moments else None
        return blocks, self._between("start", "end")

    def _between(self, start: str, end: str) -> float:
        if self.device.type == "cuda":
            return float(self.moments[start].elapsed_time(self.moments[end])) / 1e3
        return float(self.moments[end] - self.moments[start])
