"""The measuring parts of the GPU report on a CPU: their rows, and methods that are left out."""

import pytest
import torch

from bench.gpu_report import attention, small_shapes, token_operators
from bench.gpu_report.attention_rows import finished
from bench.roofline import Roofline
from bench.rows import read_rows
from msvit_kernels import dispatch
from tests.bench.helpers import CPU, NATIVE


@pytest.mark.skipif(not NATIVE, reason="the compiled extension is missing")
def test_attention_rows(tmp_path, capsys):
    assert attention.main(["--quick", "--device", "cpu", "--seconds", "60", "--output", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "attention.csv")
    assert {row["method"] for row in rows} >= {"cpu", "cpu + key weight", "sdpa loop", "sdpa padded", "sdpa nested"}
    assert {row["direction"] for row in rows} == {"fwd", "bwd"}
    for row in rows:
        assert 0 < float(row["eager_p20_us"]) <= float(row["eager_p50_us"]) <= float(row["eager_p80_us"])
        assert float(row["floor_us"]) > 0
        assert all(row[name] for name in ("machine", "torch", "commit", "date", "copy_gb_s", "peak_gflop_s"))
        assert row["eager_best_peer"] in ("sdpa loop", "sdpa padded", "sdpa nested")
    assert "left out: varlen_attn flash: not on a CPU" in capsys.readouterr().out


@pytest.mark.skipif(not NATIVE, reason="the compiled extension is missing")
def test_a_wrong_backend_is_not_timed(monkeypatch, tmp_path, capsys):
    resolve_function = dispatch.resolve_function

    def resolve(op, name, backend, *arguments, **details):
        function = resolve_function(op, name, backend, *arguments, **details)
        if (name, backend) == ("varlen_attention_bwd", "cpu"):
            return lambda *inputs: tuple(x if x is None else x * 1.001 for x in function(*inputs))
        return function

    monkeypatch.setattr(dispatch, "resolve_function", resolve)
    assert attention.main(["--quick", "--device", "cpu", "--seconds", "0", "--output", str(tmp_path)]) == 1
    assert "cpu + key weight" not in {row["method"] for row in read_rows(tmp_path / "attention.csv")}
    assert "FAILED cpu + key weight" in capsys.readouterr().out


def test_token_operator_rows(tmp_path):
    arguments = ["--quick", "--device", "cpu", "--seconds", "60", "--output", str(tmp_path)]
    assert token_operators.main(arguments) == 0
    rows = read_rows(tmp_path / "token_operators.csv")
    found = {(row["operator"], row["images"], row["direction"]) for row in rows}
    assert {operator for operator, *_ in found} == {"mixed_scale_embed", "mixed_scale_layout", "unpack_to_grid"}
    assert {("mixed_scale_embed", "uint8", "bwd"), ("mixed_scale_embed", "float", "fwd")} <= found
    assert all(float(row["eager_p50_us"]) > 0 for row in rows)


def test_small_shapes_are_compared(capsys):
    assert small_shapes.main(["--device", "cpu", "--backend", "cpu"]) == 0
    assert capsys.readouterr().out.count("ok ") == (8 if NATIVE else 0)


@pytest.mark.skipif(not NATIVE, reason="the compiled extension is missing")
def test_a_backend_can_be_left_out(tmp_path, capsys):
    arguments = ["--quick", "--device", "cpu", "--seconds", "0", "--output", str(tmp_path), "--without", "cpu"]
    assert attention.main(arguments) == 0
    assert not any(row["method"].startswith("cpu") for row in read_rows(tmp_path / "attention.csv"))


def test_the_better_varlen_attn_is_what_rows_are_compared_with():
    def row(method, microseconds, ours=False, exact=True):
        return {
            "workload": "w", "head_dim": 64, "direction": "fwd", "method": method, "ours": ours, "exact": exact,
            "graph_p50_us": microseconds, "eager_p50_us": microseconds, "least_bytes": 1e6, "flop": 1e9,
            "gb_s": 1.0, "tflop_s": 1.0,
        }  # fmt: skip

    rows = [row("cuda", 10.0, ours=True), row("varlen_attn flash", 30.0), row("varlen_attn cudnn", 20.0)]
    rows.append(row("sdpa padded flash", 1.0, exact=False))  # other work, with which nothing is compared
    ceilings = Roofline.measure(CPU, torch.float32, 0.01)
    first, *_ = finished(rows, ceilings, {})
    assert first["graph_times_varlen_attn"] == 2
    assert first["graph_best_peer"] == "varlen_attn cudnn"
