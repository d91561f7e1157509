"""Interleaved timing: methods that are compared take turns, so that noise of the machine affects all of them equally.

On the CPU a time is wall-clock time; on a GPU it is the time between two events of the stream.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

QUANTILES = (20, 50, 80)  # percent


def elapsed_seconds(call: Callable[[], Any], device: torch.device, repeats: int = 1) -> float:
    """Mean seconds of `repeats` calls in a row."""
    if device.type == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def interleave(
    methods: Mapping[str, Callable[[], Any]],
    device: torch.device,
    seconds: float,
    sample_seconds: float = 2e-3,
    few: Sequence[str] = (),
) -> dict[str, list[float]]:
    """Times the methods in turn until `seconds` have passed, at least three rounds.

    Args:
        methods: calls by name.
        device: device of the calls.
        seconds: limit for all methods together.
        sample_seconds: minimum time of a sample; a faster method is called several times for each sample.
        few: slow methods that take part only in the first three rounds, because a rough time is enough.

    Returns:
        Seconds of one call by name, one number for each round that the method took part in.
    """
    repeats = {}
    for name, call in methods.items():
        call()
        elapsed = elapsed_seconds(call, device)
        repeats[name] = max(1, min(1000, round(sample_seconds / max(elapsed, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in methods}
    end = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < end or rounds < 3:
        for name, call in methods.items():
            if rounds < 3 or name not in few:
                samples[name].append(elapsed_seconds(call, device, repeats[name]))
        rounds += 1
    return samples


def host_seconds(methods: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median seconds that the host spends on a call, without waiting for the device, by name."""
    samples = interleave(methods, torch.device("cpu"), seconds, sample_seconds=1e-3)
    return {name: median(each) for name, each in samples.items()}


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """{"p20": ..., "p50": ..., "p80": ...}, linearly interpolated."""
    values = torch.quantile(torch.tensor(samples, dtype=torch.float64), torch.tensor(QUANTILES).double() / 100)
    return {f"p{q}": float(value) for q, value in zip(QUANTILES, values, strict=True)}


def median(samples: Sequence[float]) -> float:
    """The 50th percentile."""
    return quantiles(samples)["p50"]
