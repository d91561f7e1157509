"""Interleaved timing, quantiles, peak memory, and passes over rotated buffers."""

import time

import pytest

from bench import failures, graphs, timing
from tests.bench.helpers import CPU


def test_methods_take_turns():
    order = []
    samples = timing.interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, seconds=0, sample_seconds=0
    )
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3}
    # One warm-up and one calibration of each, then rounds.
    assert "".join(order) == "aabb" + "ab" * 3


def test_fast_methods_are_repeated_within_a_sample():
    calls = []
    samples = timing.interleave({"fast": lambda: calls.append(0)}, CPU, seconds=0, sample_seconds=1e-3)
    assert len(calls) > 10 * len(samples["fast"])


def test_methods_of_which_a_few_samples_are_enough():
    samples = timing.interleave({"a": lambda: None, "slow": lambda: None}, CPU, seconds=0.05, few=("slow",))
    assert len(samples["a"]) > len(samples["slow"]) == 3


def test_times_are_seconds_of_one_call():
    elapsed = timing.elapsed_seconds(lambda: time.sleep(0.01), CPU, repeats=3)
    assert 0.01 <= elapsed < 1


def test_quantiles():
    assert timing.quantiles([5, 1, 2, 3, 4]) == pytest.approx({"p20": 1.8, "p50": 3, "p80": 4.2})
    assert timing.quantiles([2.0]) == {"p20": 2, "p50": 2, "p80": 2}


def test_a_sample_is_a_pass_over_all_buffers():
    called = []
    calls = {"a": [lambda: called.append(0), lambda: time.sleep(0.004)]}
    times = graphs.time_methods(calls, CPU, seconds=0)
    assert len(called) >= 3
    assert not times["a"].graph
    assert 0.002 <= timing.quantiles(times["a"].eager)["p50"] < 0.1
    columns = graphs.columns(times["a"])
    assert columns["graph_samples"] == 0
    assert columns["eager_samples"] == 3
    assert columns["eager_p50_us"] >= 2000


def test_errors_that_end_a_process():
    assert failures.is_fatal(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not failures.is_fatal(RuntimeError("Device-side assertions were explicitly omitted"))
    assert failures.reason(ValueError("a\nb")) == "ValueError: a"
