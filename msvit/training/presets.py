"""Recipes by name: those of the paper's appendix C, and the built-in experiment."""

from typing import Any

from msvit.training.config import Config

# Section C.1: the defaults of `Config`. The paper's ViT has ImageNet-21k weights, timm's vit_...augreg_in21k.
_VIT = Config(preset="vit", data="imagenet")

# Section C.2: another optimizer, no clipping of gradients, label smoothing.
_DEIT = _VIT.replace(
    preset="deit",
    model="deit_small_patch16_224",
    optimizer="adamw",
    lr=2e-5,
    weight_decay=1e-4,
    clip_grad=None,
    label_smoothing=0.1,
)

# Built-in images, on which a small model trains from scratch in minutes on two cores. They are made once, so they are
# not augmented.
_BUILT_IN: dict[str, Any] = {
    "data": "digits",
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 3,
    # Far from the grey of the backgrounds; layer norms would amplify noise in backgrounds near 0.
    "pixel_mean": 0.65,
    "pixel_std": 0.25,
    "flip": 0.0,
    "num_workers": 0,
    "epochs": 16,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 1.0,
}

_DIGITS = Config(
    preset="digits",
    **_BUILT_IN,
    model="msvit_tiny_patch8_16_80",
    global_pool="avg",
    crops="none",
    center_init=False,
    gate_target=0.1,
    gate_delay_epochs=6.0,
    gate_warmup_epochs=8.0,
)

_DIGITS_LARGE = _DIGITS.replace(
    preset="digits-large",
    model="msvit_small_patch16_32_224",
    embed_dim=None,
    depth=None,
    num_heads=None,
    train_size=50_000,
    test_size=5_000,
    epochs=30,
    batch_size=512,
    lr=5e-4,
    drop_path=0.1,
    precision="bf16",
)

# The original Segmenter's recipe for ADE20K. Its "sgd" is timm's, with Nesterov momentum.
_ADE20K = Config(
    preset="ade20k",
    task="segmentation",
    data="ADEChallengeData2016",
    model="msvit_seg_small_mask_patch16_32_512",
    drop_path=0.1,
    decoder_dropout=0.1,
    freeze="gate",
    epochs=64,
    batch_size=8,
    optimizer="sgd",
    lr=1e-3,
    min_lr=1e-5,
    schedule="poly",
    decay_rate=0.9,
    warmup_epochs=0.0,
    clip_grad=None,
)

_DIGITS_SEGMENTATION = Config(
    preset="digits-segmentation",
    task="segmentation",
    **_BUILT_IN,
    train_size=3000,
    test_size=500,
    model="msvit_seg_tiny_mask_patch8_16_80",
    image_size=64,  # a digit is then two or three patches wide
    decoder_depth=1,
    scale_min=1.0,
    scale_max=1.0,
    photometric=False,
    gate="entropy",
)

PRESETS = {config.preset: config for config in (_VIT, _DEIT, _DIGITS, _DIGITS_LARGE, _ADE20K, _DIGITS_SEGMENTATION)}
# The preset of a run that names none.
_DEFAULTS = {"classification": "vit", "segmentation": "ade20k"}


def make_config(preset: str | None = None, **values: Any) -> Config:
    """Makes the configuration of a run from a preset.

    Args:
        preset: "vit", "deit", "digits" or "digits-large" for classification, "ade20k" or "digits-segmentation" for
            segmentation; None for "vit" or, if `values` has task="segmentation", "ade20k".
        values: values of `Config` by name, which replace those of the preset.

    Returns:
        The checked configuration.

    Raises:
        ValueError: the preset is unknown or one of another task, or a value is out of range; the message names it as on
            the command line.
        TypeError: a value has the wrong type, or `Config` has no value of that name.
    """
    task = values.get("task")
    if preset is None:
        preset = _DEFAULTS.get(str(task), "vit")
    if preset not in PRESETS:
        raise ValueError(f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    if task in _DEFAULTS and task != PRESETS[preset].task:
        names = ", ".join(name for name, config in PRESETS.items() if config.task == task)
        raise ValueError(f"--preset: expected one of {names} for --task {task}, got {preset!r}")
    return PRESETS[preset].replace(**values)
