"""The common harness for attention: workloads and their tensors, our backends, other implementations, and checks."""
