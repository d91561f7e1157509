"""The settings of the experiments: the rows of the table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from msvit.training import make_config

FIRST = "pretrained"
# A quick pass through everything, for tests: nothing is learned.
QUICK = {"image_size": 48, "embed_dim": 32, "depth": 1, "num_heads": 2, "train_size": 64, "test_size": 40, "epochs": 1}


@dataclass(frozen=True)
class Setting:
    """A row of the table.

    Attributes:
        name: name of the row and of its runs, NAME-s0, NAME-s1, ...
        about: description in the table.
        options: values of `msvit.training.Config` that differ from the preset.
        gate_of: setting whose trained gate this one takes over, frozen; if None, it has its own.
        pretrained: whether it starts from the run of `pretrained` with the same seed.
    """

    name: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    gate_of: str | None = None
    pretrained: bool = True


_PLAIN = {"gate": "fine", "loss": "none"}
_FIXED = {"loss": "none"}
# Values of all settings that do not follow the preset.
COMMON = {"epochs": 5, "gate_delay_epochs": 0.0, "gate_warmup_epochs": 0.5, "warmup_epochs": 0.3}
# Runs are short: with the backbone's learning rate, a gate would not reach its prior.
COMMON["gate_lr_scale"] = 3.0
_LONG = {"epochs": 15}
_PRESET = {name: getattr(make_config("digits"), name) for name in COMMON}

SETTINGS = (
    Setting(FIRST, "plain ViT, from scratch: what all below start from", {**_PLAIN, **_PRESET}, pretrained=False),
    Setting("scratch", "`msvit train --preset digits`: gate and backbone from scratch", _PRESET, pretrained=False),
    Setting("plain-80", "plain ViT, 80 px", {**_PLAIN, "image_size": 80}),
    Setting("plain-64", "plain ViT, 64 px", {**_PLAIN, "image_size": 64}),
    Setting("plain-48", "plain ViT, 48 px", {**_PLAIN, "image_size": 48}),
    Setting("plain-32", "plain ViT, 32 px", {**_PLAIN, "image_size": 32}),
    Setting("coarse", "all regions of 80 px coarse", {"gate": "coarse", "loss": "none"}),
    Setting("l0", "learned gate, L0 loss", {"loss": "l0"}),
    Setting("bas", "learned gate, batch shaping per position", {"loss": "bas"}),
    Setting("bas-flat", "learned gate, batch shaping, flattened", {"loss": "bas-flat"}),
    Setting("gbas", "learned gate, generalized batch shaping", {"loss": "gbas"}),
    Setting("gbas-center", "the same with centre initialisation", {"loss": "gbas", "center_init": True}),
    Setting("gbas-25", "generalized batch shaping, g* = 0.25", {"loss": "gbas", "gate_target": 0.25}),
    # A radial gate has 1 or 5 of the 25 regions fine: the learned gate is compared with the stronger one.
    Setting("radial", "fixed gate, the 5 central regions fine", {"gate": "radial", "gate_target": 0.2, **_FIXED}),
    Setting("random", "random gate", {"gate": "random", **_FIXED}),
    # 28 % of the training regions exceed the threshold, but 11 % of the test regions: those photographs are smoother.
    Setting("entropy", "entropy gate, as many test regions fine", {"gate": "entropy", "gate_target": 0.28, **_FIXED}),
    Setting("frozen", "gate of `gbas`, frozen, backbone trained", {"freeze": "gate"}, gate_of="gbas"),
    Setting("gbas-trimmed", "`gbas` trained trimmed", {"loss": "gbas", "token_mode": "trimmed"}),
    Setting("gbas-masked", "`gbas` trained masked", {"loss": "gbas", "token_mode": "masked"}),
    Setting("frozen-masked", "gate of `gbas-masked`, frozen, backbone trained", {"freeze": "gate"}, "gbas-masked"),
    Setting("gbas-long", "`gbas`, 15 epochs", {"loss": "gbas", **_LONG}),
    Setting("plain-48-long", "plain ViT, 48 px, 15 epochs", {**_PLAIN, "image_size": 48, **_LONG}),
    Setting("plain-32-long", "plain ViT, 32 px, 15 epochs", {**_PLAIN, "image_size": 32, **_LONG}),
)
