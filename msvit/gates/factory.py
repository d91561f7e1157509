"""Gates by name, for the model factories, training and `msvit tokens`."""

from collections.abc import Sequence

from torch import nn

from msvit.gates.entropy import EntropyGate
from msvit.gates.fixed import ConstantGate, RadialGate, RandomGate
from msvit.gates.mlp import MLPGate

# Gates without learned parameters, which need no training.
FIXED_GATE_NAMES = ("entropy", "radial", "random", "fine", "coarse")
GATE_NAMES = ("mlp", *FIXED_GATE_NAMES)


def make_gate(
    gate: str | nn.Module,
    coarse: int,
    grid_size: tuple[int, int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Makes a gate by name, with its defaults; a module is returned unchanged.

    Args:
        gate: one of `GATE_NAMES`, or a module that maps images to logits [batch, Hc, Wc].
        coarse: width of a region in pixels.
        grid_size: (Hc, Wc), regions of an image.
        mean: three floats, per-channel mean of pixels in [0, 1], by which images are normalised; None if they are not.
        std: three floats, per-channel standard deviation, by which images are normalised; None if `mean` is None.

    Returns:
        A module that maps images [batch, 3, H, W] to logits [batch, Hc, Wc].

    Raises:
        ValueError: `gate` is a name that is not in `GATE_NAMES`.
        TypeError: `gate` is neither a name nor a module.
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
