"""Raw forward and backward functions of the CPU backend, which launch the C++ kernels in msvit_kernels._C."""

try:
    from msvit_kernels import _C  # noqa: F401  every module of this package needs it
except ImportError as error:
    raise ImportError(f"the compiled module does not load; build it with `pip install -e .` ({error})") from error
