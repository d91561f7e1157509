"""The parts of bench/gpu_report.py: workloads, the libraries beside ours, timing, sanitizers, profiler, summary."""
