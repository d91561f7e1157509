"""Gates by name, for `create_model` and `from_timm`."""

from collections.abc import Sequence

from torch import nn

from msvit.gates.entropy import EntropyGate
from msvit.gates.fixed import ConstantGate, RadialGate, RandomGate
from msvit.gates.mlp import MLPGate

GATE_NAMES = ("mlp", "radial", "random", "entropy", "fine", "coarse")


def make_gate(
    gate: str | nn.Module,
    coarse: int,
    grid_size: tuple[int, int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """A gate by name, with its defaults; a module is returned as it is.

    Args:
        gate: one of `GATE_NAMES`, or a module that maps images to logits [batch, Hc, Wc].
        coarse: width of a region in pixels.
        grid_size: (Hc, Wc).
        mean: per channel, by which the images are normalised, or None.
        std: likewise.

    Raises:
        ValueError: a name that is not in `GATE_NAMES`.
        TypeError: neither a name nor a module.
    """
    if isinstance(gate, nn.Module):
        return gate
    if not isinstance(gate, str):
        raise TypeError(f"gate: expected a name or a module, got {type(gate).__name__}")
    if gate == "mlp":
        return MLPGate(coarse, grid_size, mean=mean, std=std)
    if gate == "entropy":
        return EntropyGate(coarse, mean=mean, std=std)
    if gate == "radial":
        return RadialGate(coarse)
    if gate == "random":
        return RandomGate(coarse)
    if gate in ("fine", "coarse"):
        return ConstantGate(coarse, fine=gate == "fine")
    raise ValueError(f"gate: expected one of {', '.join(GATE_NAMES)} or a module, got {gate!r}")
