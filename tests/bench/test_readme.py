"""The README's sections follow from the CSV rows."""

from bench.attention.workloads import HEADLINE
from bench.readme import gpu
from bench.rows import write_rows
from tests.bench.helpers import made
from tests.bench.latency_rows import latency_row


def test_readme_shows_what_a_gpu_measured(tmp_path):
    folder = tmp_path / "bench" / "results" / "cuda-gpu-x"
    rows = [latency_row("packed", 98, 256, 0.05), latency_row("packed graph", 98, 256, 0.04, times_compiled=2.0)]
    rows += [latency_row("masked", 98, 256, 0.3), latency_row("packed", 98, 1, 1.5)]
    write_rows(folder / "latency_bf16.csv", rows)
    older = [
        latency_row("packed graph", 98, 256, 0.01, date="2029", commit="old"),  # measured again since
        latency_row("packed compiled", 98, 1, 1.25, date="2029", commit="older"),
    ]
    write_rows(folder / "latency_bf16_98-196.csv", older)
    fwd = {"workload": HEADLINE, "direction": "fwd", "share_of_copy": 0.8, "share_of_matmul": 0.2}
    attention_rows = [
        made(method="cuda", graph_p50_us=30, **fwd),
        made(method="cuda + key weight", graph_p50_us=20, **fwd),
        made(method="varlen_attn", ours=False, graph_p50_us=60, **fwd),
        made(method="sdpa padded flash", ours=False, exact=False, graph_p50_us=1, **fwd),
    ]
    write_rows(folder / "attention.csv", [rows[0] | {"date": "2031"} | each for each in attention_rows])
    text = " ".join(gpu.section(folder.parent))
    assert "GPU X (torch 3, triton 4, commits older, abc), in bf16" in text
    assert "was timed only for packed at batch 1 with 98 tokens." in text
    assert "Without a graph, one image takes 1.5 to 1.5 ms" in text
    assert "| 98 | 1.96 |  | 1.25 |  | 0.3 |  | 0.04 | 6.0 |" in text
    assert "2.00x as fast as the compiled ViT-S/16" in text
    assert f"| {HEADLINE} | fwd | cuda | 30.0 | 80% copy | varlen_attn | 60.0 | 2.00x |" in text
    assert "bench/results/cuda-gpu-x/report.md" in text
    assert "training step has not been measured on a GPU yet" in text


def test_readme_says_that_no_gpu_was_measured(tmp_path):
    (tmp_path / "UNVERIFIED.md").write_text("| `msvit_kernels/triton/a.py` | `b` |")
    assert "so\nthere is no GPU table yet" in "\n".join(gpu.section(tmp_path))


def test_the_readme_shows_the_fastest_form():
    def row(method, milliseconds, tokens="98", times=""):
        wanted = {"method": method, "batch": "256", "wanted_tokens": tokens, "gmacs": "2"}
        return wanted | {"all_p50_ms": str(milliseconds), "times_compiled": times}

    rows = [row("packed", 9), row("packed graph", 7, times="2"), row("packed compiled", 8)]
    rows += [row("dense", 20), row("dense graph", 18), row("packed compiled graph", 5, times="3")]
    assert "| 98 | 2.00 |  |  | 18 |  |  | 5 | 6.0 |" in gpu.latency_lines(rows)
    sentence = "At batch 256, packed MSViT-S with 98 tokens (compiled graph) is 3.00x as fast as the compiled ViT-S/16"
    assert gpu.latency_lines(rows)[-1] == f"{sentence} with 196 tokens."
