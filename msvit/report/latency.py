"""Latency of models per image on a device."""

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from msvit.models import MixedScaleVisionTransformer, Segmenter


@torch.inference_mode()
def measure_latency(
    models: Mapping[str, MixedScaleVisionTransformer | Segmenter],
    images: Mapping[str, Tensor],
    device: torch.device,
    seconds: float = 2.0,
) -> dict[str, float]:
    """Times models in packed mode, from uint8 images to logits.

    Models take turns, so that a busy moment of the machine affects all of them alike.

    Args:
        models: models by name, in evaluation mode, on `device`.
        images: one batch for each model, by the same names, uint8 [batch, 3, H, W].
        device: device of the models.
        seconds: seconds to spend on each model, which is called at least three times.

    Returns:
        Milliseconds per image by name, the median over the calls.
    """
    batches = {name: images[name].to(device) for name in models}
    modes = {name: model.token_mode for name, model in models.items()}
    samples: dict[str, list[float]] = {name: [] for name in models}
    try:
        for name, model in models.items():
            model.token_mode = "packed"
            _call_ms(model, batches[name], device)  # the first call of a shape takes longer
        end = time.perf_counter() + seconds * len(models)
        while time.perf_counter() < end or min(map(len, samples.values())) < 3:
            for name, model in models.items():
                samples[name].append(_call_ms(model, batches[name], device) / len(batches[name]))
    finally:
        for name, mode in modes.items():
            models[name].token_mode = mode
    return {name: statistics.median(values) for name, values in samples.items()}


def _call_ms(model: nn.Module, images: Tensor, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    model(images)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start)
