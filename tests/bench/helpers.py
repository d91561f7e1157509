"""Small workloads, and rows in the form of the report's CSV files."""

import torch

from bench.attention.workloads import Workload
from msvit_kernels import testing

CPU = torch.device("cpu")
NATIVE = "cpu" in testing.backends_for("varlen_attention", "cpu", torch.float32, head_dim=64)
SMALL = Workload("3 x 5..12", (12, 5, 12), 16, 32)
EVEN = Workload("2 x 9", (9, 9), 16, 32)


def made(**values):
    base = {"head_dim": "64", "ours": "True", "exact": "True", "graph_times_varlen_attn": "", "host_us": ""}
    return base | {key: str(value) for key, value in values.items()}
