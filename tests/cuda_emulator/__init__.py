"""Runs the CUDA kernels on the CPU, for tests on machines without a GPU (docs/cuda.md)."""

import os
import sys
from pathlib import Path

from tests.cuda_emulator import build
from tests.cuda_emulator.startup.sitecustomize import Finder

STARTUP = Path(__file__).resolve().parent / "startup"
PATH = "MSVIT_CUDA_EMULATOR"  # of the built emulator, in the environment; empty where there is none


def install() -> None:
    """Makes the emulator msvit_kernels._cuda in this process; builds it if the environment does not name one."""
    if PATH not in os.environ:
        os.environ[PATH] = build.build_or_explain()
    sys.meta_path.insert(0, Finder())


def is_installed() -> bool:
    """Whether msvit_kernels._cuda is the emulator."""
    return bool(os.environ.get(PATH)) and any(isinstance(finder, Finder) for finder in sys.meta_path)


def environment() -> dict[str, str]:
    """Variables for processes in which msvit_kernels._cuda is the emulator and Triton interprets its kernels."""
    path = os.environ.get(PATH) or str(build.build(build.MODULE))
    python_path = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))
    return {PATH: path, "PYTHONPATH": python_path, "TRITON_INTERPRET": "1"}
