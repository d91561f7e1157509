"""Facts about the machine, the commit, and the requested device."""

import subprocess

import pytest
import torch

from bench import machine
from tests.bench.helpers import CPU


def test_facts():
    facts = machine.facts(CPU)
    assert list(facts)[:2] == ["machine", "cores"]
    assert all(facts[name] for name in ("machine", "threads", "torch", "timm", "numpy", "python", "commit", "date"))


def test_commit_outside_of_git(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() == "unknown"


def test_commit_says_when_the_code_differs_from_it(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")

    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "code.py").write_text("1")
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    clean = machine.commit()
    assert len(clean) == 12
    (tmp_path / "untracked.py").write_text("1")
    assert machine.commit() == clean
    (tmp_path / "code.py").write_text("2")
    assert machine.commit() == f"{clean}-dirty"


def test_results_are_kept_by_device():
    folder = machine.results_dir(CPU)
    assert folder.parent == machine.ROOT / "bench" / "results"
    assert folder.name.startswith("cpu-")
    assert folder.name == folder.name.lower().replace(" ", "-")


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:x"])
def test_wrong_device(name):
    with pytest.raises(ValueError, match=f"--device: expected cpu or cuda, got '{name}'"):
        machine.find_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu():
    with pytest.raises(ValueError, match="torch finds no GPU"):
        machine.find_device("cuda")
    assert machine.find_device(None) == CPU


def test_commit_of_a_copy_without_git(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("MSVIT_COMMIT", "0123456789ab")
    assert machine.commit() == "0123456789ab"
