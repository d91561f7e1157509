"""Builds the native modules of msvit_kernels with CMake; everything else is in pyproject.toml.

Environment: MSVIT_BUILD_CUDA=0 leaves `_cuda` out, MSVIT_CUDA_ARCHS="80;90a" sets its architectures,
MSVIT_SANITIZE=address,undefined builds `_C` with these sanitizers, CXX and CMAKE_ARGS mean what they mean to CMake.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_tool(name: str) -> str:
    """Path of a build tool; pip without isolation does not put the environment's own tools on PATH."""
    beside_python = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside_python) if beside_python.exists() else None)
    if found is None:
        sys.exit(f"msvit: {name} not found. Install it with `pip install {name}` and try again.")
    return found


def require_compiler() -> None:
    wanted = shlex.split(os.environ.get("CXX", ""))[:1]
    candidates = wanted or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in candidates):
        sys.exit(
            f"msvit: no C++ compiler found (looked for {', '.join(candidates)}). Install GCC >= 10 or Clang >= 12, "
            "such as `apt install g++`, `dnf install gcc-c++` or `xcode-select --install`, or set CXX, and try again."
        )


class CMakeBuild(build_ext):
    def build_extensions(self) -> None:
        require_compiler()
        # Not self.build_temp: pip deletes that, and rebuilding after a change should cost only the change.
        sanitize = os.environ.get("MSVIT_SANITIZE", "")
        tag = "-".join(filter(None, [sysconfig.get_config_var("SOABI") or "native", sanitize.replace(",", "-")]))
        build_dir = ROOT / "build" / f"cmake-{tag}"
        # pip's build isolation moves these at every run, so they are always passed and never taken from CMake's cache.
        import pybind11

        cuda_off = os.environ.get("MSVIT_BUILD_CUDA", "1").lower() in ("0", "off", "false", "no")
        options = {
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "Python_EXECUTABLE": sys.executable,
            "MSVIT_SANITIZE": sanitize,
            "MSVIT_BUILD_CUDA": "OFF" if cuda_off else "ON",
            "MSVIT_CUDA_ARCHS": os.environ.get("MSVIT_CUDA_ARCHS", ""),
            # What CMAKE_ARGS asked for once should not stay.
            "MSVIT_CPU_LEVELS": "",
            "MSVIT_CUDA_FP16": "ON",
        }
        cmake = find_tool("cmake")
        defines = [f"-D{key}={value}" for key, value in options.items()]
        extra = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        package_dir = Path(self.get_ext_fullpath("msvit_kernels._C")).resolve().parent
        self.run_cmake([cmake, "-S", ROOT / "csrc", "-B", build_dir, "-G", "Ninja", *defines, *extra])
        self.run_cmake([cmake, "--build", build_dir])
        self.run_cmake([cmake, "--install", build_dir, "--prefix", package_dir])

    def run_cmake(self, command: list) -> None:
        if subprocess.run([str(part) for part in command]).returncode != 0:
            sys.exit("msvit: building the native kernels failed; the messages above say why.")


setup(
    # _cuda is optional: setuptools then accepts that CMake left it out.
    ext_modules=[Extension("msvit_kernels._C", []), Extension("msvit_kernels._cuda", [], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
