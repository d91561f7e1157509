"""What the benches share: facts, roofline, interleaved timing and CSV."""

import csv
import subprocess
import time

import common
import pytest
import torch

CPU = torch.device("cpu")


def test_methods_take_turns():
    order = []
    samples = common.interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, seconds=0, sample_seconds=0
    )
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3}
    # One warm-up and one calibration of each, then rounds.
    assert "".join(order) == "aabb" + "ab" * 3


def test_fast_methods_are_repeated_within_a_sample():
    calls = []
    samples = common.interleave({"fast": lambda: calls.append(0)}, CPU, seconds=0, sample_seconds=1e-3)
    assert len(calls) > 10 * len(samples["fast"])


def test_methods_of_which_a_few_samples_are_enough():
    samples = common.interleave({"a": lambda: None, "slow": lambda: None}, CPU, seconds=0.05, few=("slow",))
    assert len(samples["a"]) > len(samples["slow"]) == 3


def test_times_are_seconds_of_one_call():
    elapsed = common.elapsed_seconds(lambda: time.sleep(0.01), CPU, repeats=3)
    assert 0.01 <= elapsed < 1


def test_quantiles():
    assert common.quantiles([5, 1, 2, 3, 4]) == pytest.approx({"p20": 1.8, "p50": 3, "p80": 4.2})
    assert common.quantiles([2.0]) == {"p20": 2, "p50": 2, "p80": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roofline(dtype):
    roofline = common.Roofline.measure(CPU, dtype, seconds=0.03)
    assert roofline.peak_gflop_s > 0.1
    assert roofline.copy_gb_s > 0.01
    assert set(roofline.columns()) == {"peak_gflop_s", "peak_source", "copy_gb_s"}


def test_roofline_takes_the_better_of_two():
    slow, fast = common.Roofline(100, "matmul", 30), common.Roofline(200, "fma", 20)
    assert slow.best(fast) == fast.best(slow) == common.Roofline(200, "fma", 30)


def test_fma_peak_counts_operations_of_all_threads():
    native = pytest.importorskip("msvit_kernels._C")
    flop, seconds = native.fma_peak(1000, 2, False)
    assert flop == 2 * native.fma_peak(1000, 1, False)[0] > 0
    assert seconds > 0


def test_facts():
    facts = common.facts(CPU)
    assert list(facts)[:2] == ["machine", "cores"]
    assert all(facts[name] for name in ("machine", "threads", "torch", "timm", "numpy", "python", "commit", "date"))


def test_commit_outside_of_git(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert common.commit() == "unknown"


def test_commit_says_when_the_code_differs_from_it(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")

    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "code.py").write_text("1")
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    clean = common.commit()
    assert len(clean) == 12
    (tmp_path / "untracked.py").write_text("1")
    assert common.commit() == clean
    (tmp_path / "code.py").write_text("2")
    assert common.commit() == f"{clean}-dirty"


def test_results_are_kept_by_device():
    folder = common.results_dir(CPU)
    assert folder.parent == common.ROOT / "bench" / "results"
    assert folder.name.startswith("cpu-")
    assert folder.name == folder.name.lower().replace(" ", "-")


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:x"])
def test_wrong_device(name):
    with pytest.raises(ValueError, match=f"--device: expected cpu or cuda, got '{name}'"):
        common.find_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu():
    with pytest.raises(ValueError, match="torch finds no GPU"):
        common.find_device("cuda")
    assert common.find_device(None) == CPU


def test_csv(tmp_path):
    common.write_csv(tmp_path / "new" / "x.csv", [{"a": 1, "b": 0.123456789}, {"a": None, "c": "x, y"}])
    with (tmp_path / "new" / "x.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b", "c"], ["1", "0.123457", ""], ["", "", "x, y"]]
