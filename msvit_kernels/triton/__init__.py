"""The Triton backend: NVIDIA GPUs from sm_80 on, and the CPU under TRITON_INTERPRET=1. Imported only by dispatch."""
