"""The one harness for attention: workloads and their tensors, our backends, other implementations, and verdicts."""
