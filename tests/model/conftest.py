"""Runs of a few steps, trained once for all tests of the report."""

import pytest
import torch

from msvit.report import build_report
from msvit.training import load_run, make_config, start_run

TINY = {
    "image_size": 48,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "train_size": 96,
    "test_size": 40,
    "epochs": 2,
    "batch_size": 32,
    "gate_delay_epochs": 0.0,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders by name: two seeds of a learned gate, and a radial gate."""
    root = tmp_path_factory.mktemp("runs")
    configs = {
        # A budget: a gate of six steps makes all regions alike.
        "learned-0": {"tokens_per_image": 15.0, "seed": 0},
        "learned-1": {"tokens_per_image": 15.0, "seed": 1},
        "radial-0": {"gate": "radial", "loss": "none"},
    }
    for name, values in configs.items():
        start_run(make_config("digits", **{**TINY, **values}), root / name)
    return {name: root / name for name in configs}


@pytest.fixture(scope="session")
def runs(folders):
    return {name: load_run(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def built(folders, tmp_path_factory):
    """Folder of the report on all of the runs."""
    output = tmp_path_factory.mktemp("report") / "new" / "folder"
    build_report(list(folders.values()), output, device=torch.device("cpu"), transforms=3, latency_seconds=0.1)
    return output
