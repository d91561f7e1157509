"""Raw forward and backward functions of the CPU backend (C++ kernels in msvit_kernels._C)."""

try:
    from msvit_kernels import _C  # noqa: F401  what every module of this package needs
except ImportError as error:
    raise ImportError(f"the compiled module is missing, `pip install -e .` builds it ({error})") from error
