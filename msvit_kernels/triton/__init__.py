"""The Triton backend: NVIDIA GPUs from sm_80 on, and the CPU if TRITON_INTERPRET=1. Imported by dispatch alone."""
