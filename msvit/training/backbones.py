"""Makes models by the names and sizes in a run's configuration."""

from typing import Any

import timm

import msvit
from msvit.models.timm_config import default_cfg
from msvit.training.config import Config

# Arguments of a timm model by the value of `Config` that sets them, if it is given.
_SIZES = {
    "img_size": "image_size",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "global_pool": "global_pool",
}


def make_by_name(config: Config, name: str, *, pretrained: bool, **arguments: Any) -> Any:
    """Makes an untrained or pretrained model with a gate of its own.

    Args:
        config: values of the run.
        name: name for `msvit.create_model`, or of a timm ViT.
        pretrained: whether to load timm's weights.
        arguments: further arguments of the model, such as `num_classes`.

    Returns:
        The model, on the CPU, in training mode.

    Raises:
        ValueError: the model is unknown, or regions do not divide the image size.
    """
    kwargs: dict[str, Any] = {**arguments, "drop_path_rate": config.drop_path}
    kwargs |= {key: value for key, field in _SIZES.items() if (value := getattr(config, field)) is not None}
    for key, number in (("mean", config.pixel_mean), ("std", config.pixel_std)):
        if number is not None:
            kwargs[key] = (number,) * 3
    if config.global_pool is not None:
        kwargs["class_token"] = config.global_pool == "token"
    kwargs |= {"pretrained": pretrained, "token_mode": config.token_mode, "gate": _gate_name(config.gate)}
    try:
        if name.startswith("msvit_"):
            return msvit.create_model(name, **kwargs)
        return msvit.from_timm(name, config.coarse, **kwargs)
    except (TypeError, AssertionError, RuntimeError) as error:  # of timm and torch, for impossible sizes
        raise ValueError(f"--model {name}: {error}") from error


def pixel_mean(config: Config) -> tuple[float, ...]:
    """The mean of pixels in [0, 1], by channel, that the model of a run subtracts."""
    if config.pixel_mean is not None:
        return (config.pixel_mean,) * 3
    if config.model.startswith("msvit_"):
        return tuple(default_cfg((0, 0))["mean"])
    weights: Any = timm.get_pretrained_cfg(config.model)
    return tuple(default_cfg((0, 0))["mean"] if weights is None else weights.mean)


def _gate_name(gate: str) -> str:
    return "mlp" if gate == "learned" else gate
