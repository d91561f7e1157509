"""Gates: modules that map images [batch, 3, H, W] to logits [batch, Hc, Wc], positive if a region should be fine."""

from msvit.gates.base import INITIAL_LOGIT, Gate
from msvit.gates.entropy import EntropyGate
from msvit.gates.factory import GATE_NAMES, make_gate
from msvit.gates.files import adapt_gate, agreement, load_gate, save_gate
from msvit.gates.fixed import ConstantGate, RadialGate, RandomGate
from msvit.gates.mlp import MLPGate

__all__ = [
    "GATE_NAMES",
    "INITIAL_LOGIT",
    "ConstantGate",
    "EntropyGate",
    "Gate",
    "MLPGate",
    "RadialGate",
    "RandomGate",
    "adapt_gate",
    "agreement",
    "load_gate",
    "make_gate",
    "save_gate",
]
