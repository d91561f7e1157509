"""The time per image grows with the tokens."""

import torch

import msvit
from msvit.report.images import load_test_images
from msvit.report.latency import measure_latency


def test_latency_grows_with_the_tokens(runs):
    models = {name: runs["learned-0"].model() for name in ("coarse", "fine")}
    for name, model in models.items():
        model.policy = msvit.policies.Threshold(0.0 if name == "fine" else 1.0)
        model.token_mode = "masked"
    images = load_test_images(runs["learned-0"]).images
    times = measure_latency(models, dict.fromkeys(models, images), torch.device("cpu"), 0.3)
    assert 0 < times["coarse"] < times["fine"]
    assert {model.token_mode for model in models.values()} == {"masked"}, "put back"
