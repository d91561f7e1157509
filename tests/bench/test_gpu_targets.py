"""The targets of the GPU report are judged by its rows."""

from bench.attention.workloads import HEADLINE
from bench.gpu_report import summary, targets
from bench.rows import write_rows
from tests.bench.helpers import made


def test_targets(tmp_path):
    write_rows(
        tmp_path / "attention.csv",
        [
            made(
                workload=HEADLINE,
                direction="fwd",
                method="cuda",
                graph_p50_us=30,
                graph_times_varlen_attn=1.5,
                share_of_copy=0.8,
            ),
            made(workload=HEADLINE, direction="fwd", method="triton", graph_p50_us=60, graph_times_varlen_attn=0.8),
            made(workload=HEADLINE, direction="bwd", method="cuda", graph_p50_us=50, graph_times_varlen_attn=4),
            made(workload=HEADLINE, direction="bwd", method="cuda + key weight", graph_p50_us=70, share_of_copy=0.5),
            made(workload="57 x 576", direction="fwd", method="cuda", graph_p50_us=100),
            made(workload="57 x 576", direction="fwd", method="varlen_attn flash", ours=False, graph_p50_us=110),
            made(workload="57 x 576", direction="fwd", method="sdpa padded cudnn", ours=False, graph_p50_us=96),
            made(
                workload="57 x 576",
                direction="fwd",
                method="sdpa padded flash",
                ours=False,
                exact=False,
                graph_p50_us=1,
            ),
        ],
    )
    latency = {"method": "packed graph", "wanted_tokens": 98, "batch": 256}
    write_rows(tmp_path / "latency_bf16.csv", [latency | {"times_compiled": 2.0, "date": "2031"}])
    write_rows(tmp_path / "latency_bf16_98-196.csv", [latency | {"times_compiled": 3.0, "date": "2030"}])
    found = {each.what: each for each in targets.all_targets(tmp_path)}
    forward = found[f"attention fwd, {HEADLINE}: share of the copy ceiling"]
    assert (forward.measured, forward.met) == (0.8, True)
    backward = found[f"attention bwd, {HEADLINE}, key-weight gradient: share of the copy ceiling"]
    assert (backward.measured, backward.met) == (0.5, False)
    against = found["attention fwd, 57 x 576, against the best peer"]
    assert (against.measured, against.met) == (0.96, False)  # padding that is attended to is no peer
    packed = "packed MSViT-S, 98 tokens, batch 256, compiled, CUDA graph, against the compiled ViT-S"
    assert (found[packed].measured, found[packed].met) == (2.0, True)  # without a compiled one, that of the graph
    assert found["training step, packed against masked"].met is None
    assert [each.met for each in targets.all_targets(tmp_path)][1] is False  # 1.5x of varlen_attn, 1.6x wanted
    lines = summary.report_lines(tmp_path / "nothing", with_targets=True)
    assert sum("not measured" in line for line in lines) == len(targets.all_targets(tmp_path / "nothing"))
