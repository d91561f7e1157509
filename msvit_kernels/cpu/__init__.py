"""Raw forward and backward functions of the CPU backend (C++ kernels in msvit_kernels._C)."""
