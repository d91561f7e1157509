"""What the latency bench and the README make of a GPU's figures."""

import sys

import common
import latency
import pytest
import readme_gpu
from gpu.workloads import HEADLINE

from tests.bench.gpu_helpers import made


def latency_row(method, tokens, batch, milliseconds, **more):
    quantiles = {f"all_p{q}_ms": milliseconds for q in common.QUANTILES}
    graph = method.endswith("graph")
    quantiles |= {f"transformer_p{q}_ms": None if graph else milliseconds / 2 for q in common.QUANTILES}
    facts = {
        "machine": "GPU X",
        "threads": 1,
        "isa": "none",
        "dtype": "bf16",
        "commit": "abc",
        "torch": "3",
        "triton": "4",
    }
    row = {"method": method, "wanted_tokens": tokens, "tokens": tokens, "batch": batch, "image_size": 224}
    return row | {"gmacs": tokens * 0.02, "times_compiled": None, "date": "2030"} | quantiles | facts | more


def test_graphs_have_no_time_of_their_blocks(tmp_path):
    columns = latency._columns([(None, 0.25), (None, 0.5)])
    assert columns["transformer_p50_ms"] is None
    assert columns["all_p80_ms"] == pytest.approx(450)
    rows = [latency_row(method, 64, 1, 2.0) for method in ("dense", "packed", "packed graph")]
    cells = latency._cells(rows[2] | {"times_masked": None, "times_dense": 2.0, "share_of_peak": 0.5})
    assert cells[:6] == ["packed graph", "64", "1.28", "", "", "2.00"]
    latency.plot_latency(rows, tmp_path / "a.png")
    latency.plot_latency(rows[:2], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_graphs_need_a_gpu(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["latency.py", "--device", "cpu", "--cuda-graph"])
    with pytest.raises(SystemExit) as caught:
        latency.main()
    assert caught.value.code == "error: --cuda-graph: expected a GPU, got a CPU"


def test_readme_shows_what_a_gpu_measured(tmp_path):
    folder = tmp_path / "bench" / "results" / "cuda-gpu-x"
    rows = [latency_row("packed", 98, 256, 0.05), latency_row("packed graph", 98, 256, 0.04, times_compiled=2.0)]
    rows += [latency_row("masked", 98, 256, 0.3), latency_row("packed", 98, 1, 1.5)]
    common.write_csv(folder / "latency_bf16.csv", rows)
    older = [
        latency_row("packed graph", 98, 256, 0.01, date="2029", commit="old"),  # measured again since
        latency_row("packed compiled", 98, 1, 1.25, date="2029", commit="older"),
    ]
    common.write_csv(folder / "latency_bf16_98-196.csv", older)
    fwd = {"workload": HEADLINE, "direction": "fwd", "share_of_copy": 0.8, "share_of_matmul": 0.2}
    attention_rows = [
        made(method="cuda", graph_p50_us=30, **fwd),
        made(method="cuda + key weight", graph_p50_us=20, **fwd),
        made(method="varlen_attn", ours=False, graph_p50_us=60, **fwd),
        made(method="sdpa padded flash", ours=False, exact=False, graph_p50_us=1, **fwd),
    ]
    common.write_csv(folder / "attention.csv", [rows[0] | {"date": "2031"} | each for each in attention_rows])
    text = " ".join(readme_gpu.section(folder.parent))
    assert "GPU X (torch 3, triton 4, commits older, abc), bf16" in text
    assert "was timed only for packed at batch 1 with 98 tokens." in text
    assert "Eager, one image takes 1.5 to 1.5 ms" in text
    assert "| 98 | 1.96 |  | 1.25 |  | 0.3 |  | 0.04 | 6.0 |" in text
    assert "2.00x as fast as the compiled ViT-S/16" in text
    assert f"| {HEADLINE} | fwd | cuda | 30.0 | 80% copy | varlen_attn | 60.0 | 2.00x |" in text
    assert "bench/results/cuda-gpu-x/report.md" in text
    assert "training step has not been measured on a GPU yet" in text


def test_readme_says_that_no_gpu_was_measured(tmp_path):
    (tmp_path / "UNVERIFIED.md").write_text("| `msvit_kernels/triton/a.py` | `b` |")
    assert "so\nthere is no GPU table yet" in "\n".join(readme_gpu.section(tmp_path))


def test_commit_of_a_copy_without_git(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("MSVIT_COMMIT", "0123456789ab")
    assert common.commit() == "0123456789ab"
