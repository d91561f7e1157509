"""Artificial rows of bench/latency.py on a GPU."""

from bench.timing import QUANTILES


def latency_row(method, tokens, batch, milliseconds, **more):
    quantiles = {f"all_p{q}_ms": milliseconds for q in QUANTILES}
    graph = method.endswith("graph")
    quantiles |= {f"transformer_p{q}_ms": None if graph else milliseconds / 2 for q in QUANTILES}
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
