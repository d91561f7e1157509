"""Makes models by the names and sizes in a run's configuration."""

from typing import Any

import msvit
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


def _gate_name(gate: str) -> str:
    return "mlp" if gate == "learned" else gate
