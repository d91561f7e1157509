"""CUDA C++ kernels for NVIDIA GPUs of compute capability 8.0 and later (csrc/cuda/)."""
