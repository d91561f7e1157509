"""With this folder on PYTHONPATH, a process and its children import the emulator as msvit_kernels._cuda.

MSVIT_CUDA_EMULATOR is the path of the built emulator; if it is empty or not set, this file has no effect.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType


class Finder(MetaPathFinder, Loader):
    """Finds the emulator when msvit_kernels._cuda is imported, before a module that is built in the package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        wanted = fullname == "msvit_kernels._cuda" and os.environ.get("MSVIT_CUDA_EMULATOR")
        return ModuleSpec(fullname, self) if wanted else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return load(Path(os.environ["MSVIT_CUDA_EMULATOR"]))

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing, because the module is already complete."""


def load(path: Path) -> ModuleType:
    """Loads the compiled module from a file that has the name of the module."""
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "sitecustomize":  # as Python imports it, and not the tests
    sys.meta_path.insert(0, Finder())
