"""The arguments of a learned gate as a file stores them, checked before a gate of that size is made."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from msvit.gates.base import check_normalisation
from msvit.gates.mlp import MLPGate
from msvit_kernels import validation


@dataclass(frozen=True)
class GateArguments:
    """Arguments of an `MLPGate`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    coarse: int
    grid_size: tuple[int, int]
    hidden: int
    temperature: float
    mean: list[float] | None
    std: list[float] | None

    def __post_init__(self) -> None:
        validation.require_int("coarse", self.coarse, 1)
        validation.require_int("hidden", self.hidden, 1)
        checked_grid_size(self.grid_size)
        validation.require_finite("temperature", self.temperature)
        if self.temperature <= 0:
            raise ValueError(f"temperature: expected a positive number, got {self.temperature}")
        check_normalisation(self.mean, self.std)

    @staticmethod
    def of(gate: MLPGate) -> "GateArguments":
        """The arguments of a gate."""
        return GateArguments(
            gate.coarse,
            checked_grid_size(gate.grid_size),
            gate.fc2.in_features,
            gate.temperature,
            None if gate.mean is None else gate.mean.flatten().tolist(),
            None if gate.std is None else gate.std.flatten().tolist(),
        )

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "GateArguments":
        """The inverse of `to_dict`.

        Raises:
            TypeError, ValueError: an argument is missing, has the wrong type or is out of range.
        """
        missing = [name for name in GateArguments.__dataclass_fields__ if name not in values]
        if missing:
            raise ValueError(f"expected the arguments of a gate, got none for {', '.join(missing)}")
        given = {name: values[name] for name in GateArguments.__dataclass_fields__}
        return GateArguments(**{**given, "grid_size": checked_grid_size(given["grid_size"])})

    def to_dict(self) -> dict[str, Any]:
        """The arguments by name, all of them types that JSON supports."""
        return asdict(self)

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError unless `state` has the parameters of a gate with these arguments."""
        hidden, square = (self.hidden,), (self.hidden, self.hidden)
        expected: dict[str, tuple[int, ...]] = {
            "pos_embed": (1, math.prod(self.grid_size), self.hidden),
            "fc1.weight": (self.hidden, 3, self.coarse, self.coarse),
            "fc1.bias": hidden,
            "fc2.weight": square,
            "fc2.bias": hidden,
            "fc3.weight": square,
            "fc3.bias": hidden,
            "fc4.weight": (1, self.hidden),
            "fc4.bias": (1,),
        }
        for name in sorted(expected.keys() | state.keys()):
            found = f"{state[name].dtype} {[*state[name].shape]}" if name in state else "none"
            if name not in expected:
                raise ValueError(f"{name}: expected no such parameter, got {found}")
            if name not in state or tuple(state[name].shape) != expected[name] or not state[name].is_floating_point():
                raise ValueError(f"{name}: expected floats of shape {[*expected[name]]}, got {found}")


def checked_grid_size(grid_size: Any) -> tuple[int, int]:
    """Returns `grid_size` as a tuple; raises TypeError or ValueError unless it is a pair of positive ints."""
    if not isinstance(grid_size, list | tuple) or len(grid_size) != 2:
        raise TypeError(f"grid_size: expected (Hc, Wc), got {grid_size!r}")
    for side in grid_size:
        validation.require_int("grid_size", side, 1)
    return grid_size[0], grid_size[1]
