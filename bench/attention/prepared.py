"""An implementation of attention prepared on one set of buffers, so that a call does only the attention."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


class UnavailableError(Exception):
    """An implementation does not run on this machine or on these inputs; the text is the reason."""


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass
class Prepared:
    """An implementation on one set of buffers.

    Attributes:
        forward: the forward call.
        backward: the backward call, which gives dq, dk, dv (and dweight) for the upstream gradient.
        packed: turns a result in the implementation's layout into [total, heads, head_dim].
        rows: int64, packed rows with a correct result; None if all are correct.
        note: remark on these inputs, for a table.
    """

    forward: Callable[[], Tensor]
    backward: Callable[[], Sequence[Tensor]]
    packed: Callable[[Tensor], Tensor] = _as_it_is
    rows: Tensor | None = None
    note: str = ""
