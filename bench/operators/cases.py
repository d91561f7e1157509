"""A case of an operator bench: methods that do the same work on the same inputs, and their check."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msvit_kernels import testing

MAX_BASELINE_ERROR = 0.02  # relative


@dataclass
class Case:
    """Methods that do the same work on the same inputs.

    Attributes:
        fields: columns that identify the case, "dtype" among them.
        methods: calls by name; names of alternatives in plain torch begin with "torch".
        check: raises AssertionError if a method computes something wrong.
        flop: minimum operations of the work; 0 leaves out the column.
        bytes: minimum bytes that the work moves; 0 leaves out the column.
        host: whether to time only the host's part of a call, without waiting for a GPU.
        few: methods for which three samples are enough.
    """

    fields: dict[str, Any]
    methods: dict[str, Callable[[], Any]]
    check: Callable[[], None]
    flop: float = 0
    bytes: float = 0
    host: bool = False
    few: tuple[str, ...] = ()


CaseMaker = Callable[[], Case]


@dataclass(frozen=True)
class Setting:
    """The command line of an operator bench.

    Attributes:
        device: device of all inputs.
        dtypes: names of dtypes, keys of `command_line.DTYPES`.
        quick: whether to use small shapes and few rounds.
    """

    device: torch.device
    dtypes: tuple[str, ...]
    quick: bool


def backends_to_time(operator: str, device: torch.device, dtype: torch.dtype, **details: Any) -> list[str]:
    """Backends of the table that run here, without GPU kernels on a CPU, whose times mean nothing."""
    found = testing.backends_for(operator, device.type, dtype, **details)
    return [name for name in found if device.type == "cuda" or name not in ("triton", "cuda")]


def check_baseline(name: str, actual: Tensor, oracle: Tensor) -> None:
    """Raises AssertionError if an alternative computes something else; rounding of up to 2 % is allowed."""
    error = (actual.detach().double() - oracle).norm() / oracle.norm()
    assert error < MAX_BASELINE_ERROR, f"{name}: relative error {float(error):.3g} against fp64: it does other work"
