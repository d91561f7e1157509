"""The operator benches check before they time, and every row names the machine."""

import importlib
from itertools import product

import pytest
import torch

from bench.operators import command
from bench.operators.cases import backends_to_time
from bench.rows import read_rows
from msvit_kernels import dispatch, testing

BENCHES = {
    "varlen_attention": {"head_dim": 64},
    "mixed_scale_embed": {"images_dtype": torch.uint8},
    "mixed_scale_layout": {},
    "unpack_to_grid": {},
}
NATIVE = "cpu" in testing.backends_for("varlen_attention", "cpu", torch.float32, head_dim=64)


def run(operator, *options):
    bench = importlib.import_module(f"bench.bench_{operator}")
    command.main(operator, bench.cases, bench.__doc__, [*map(str, options)])


@pytest.mark.parametrize("operator", BENCHES)
def test_rows(tmp_path, capsys, operator):
    run(operator, "--quick", "--device", "cpu", "--dtype", "fp32", "--output", tmp_path)
    rows = read_rows(tmp_path / f"{operator}.csv")
    backends = backends_to_time(operator, torch.device("cpu"), torch.float32, **BENCHES[operator])
    methods = {row["method"] for row in rows}
    assert methods >= {*backends, "reference"}
    assert sum(method.startswith("torch") for method in methods) >= 2
    assert {row["direction"] for row in rows} >= ({"fwd"} if operator == "mixed_scale_layout" else {"fwd", "bwd"})
    for row in rows:
        assert 0 < float(row["p20_us"]) <= float(row["p50_us"]) <= float(row["p80_us"])
        assert int(row["samples"]) >= 3
        assert float(row["times_best_torch"]) > 0
        assert all(row[name] for name in ("machine", "threads", "torch", "python", "commit", "date", "peak_gflop_s"))
    best = min((row for row in rows[-4:] if row["method"].startswith("torch")), key=lambda row: float(row["p50_us"]))
    assert float(best["times_best_torch"]) == 1
    printed = capsys.readouterr().out
    assert "× best torch" in printed
    assert f"roofline {rows[0]['dtype']}" in printed


def test_host_cost_is_a_row(tmp_path):
    run("varlen_attention", "--quick", "--device", "cpu", "--dtype", "fp32", "--output", tmp_path)
    rows = [row for row in read_rows(tmp_path / "varlen_attention.csv") if "host cost" in row["shape"]]
    assert {"reference", "torch sdpa"} <= {row["method"] for row in rows}
    assert all(row["gflop_s"] == "" for row in rows)


def slightly_wrong(outputs):
    """Off by a thousandth; integers by one."""
    if isinstance(outputs, torch.Tensor):
        return outputs * 1.001 if outputs.is_floating_point() else outputs + 1
    return tuple(None if x is None else slightly_wrong(x) for x in outputs)


@pytest.mark.skipif(not NATIVE, reason="the compiled extension is missing")
@pytest.mark.parametrize(
    ("operator", "direction"),
    [pair for pair in product(BENCHES, ["fwd", "bwd"]) if pair != ("mixed_scale_layout", "bwd")],
)
def test_a_wrong_backend_is_not_timed(monkeypatch, tmp_path, operator, direction):
    resolve_function = dispatch.resolve_function

    def resolve(op, name, backend, *arguments, **details):
        function = resolve_function(op, name, backend, *arguments, **details)
        if (name, backend) == (f"{operator}_{direction}", "cpu"):
            return lambda *inputs: slightly_wrong(function(*inputs))
        return function

    monkeypatch.setattr(dispatch, "resolve_function", resolve)
    with pytest.raises(SystemExit) as caught:
        run(operator, "--quick", "--device", "cpu", "--dtype", "fp32", "--output", tmp_path)
    assert caught.value.code.startswith(f"refused: {operator}")
    assert "is wrong, so it is not timed: cpu" in caught.value.code
    assert not list(tmp_path.iterdir())


def test_wrong_dtype():
    with pytest.raises(SystemExit) as caught:
        run("unpack_to_grid", "--dtype", "fp32,int8")
    assert caught.value.code == "error: --dtype: expected some of fp32, bf16, fp16, got 'int8'"
