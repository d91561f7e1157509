"""Benchmarks of msvit and its kernels, the GPU report, and the experiments on digits.

`bench/latency.py`, `bench/train_step.py`, `bench/segmentation.py` and `bench/bench_<operator>.py` are scripts. All else
runs as a module from the root of the repository: `python -m bench.gpu_report`, `python -m bench.experiments`,
`python -m bench.readme`.
"""

import time
from pathlib import Path

STARTED = time.perf_counter()  # before torch is imported, which takes seconds of a time limit
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
