"""Builds the native modules of msvit_kernels with CMake; all other settings are in pyproject.toml.

Environment variables: MSVIT_BUILD_CUDA=0 leaves `_cuda` out; MSVIT_CUDA_ARCHS="80;90a" sets its architectures;
MSVIT_SANITIZE=address,undefined builds `_C` with these sanitizers; CXX is the C++ compiler; CMAKE_ARGS are further
arguments of CMake.
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
    """Path of a build tool, on PATH or beside python, which pip without isolation does not put on PATH."""
    beside_python = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside_python) if beside_python.exists() else None)
    if found is None:
        sys.exit(f"msvit: {name} not found. Install it with `pip install {name}`, then try again.")
    return found


def require_compiler() -> None:
    """Exits with advice if there is no C++ compiler."""
    wanted = shlex.split(os.environ.get("CXX", ""))[:1]
    candidates = wanted or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in candidates):
        sys.exit(
            f"msvit: no C++ compiler found (looked for {', '.join(candidates)}). Install GCC >= 10 or Clang >= 12, for "
            "example with `apt install g++`, `dnf install gcc-c++` or `xcode-select --install`, or set CXX; try again."
        )


class CMakeBuild(build_ext):
    def build_extensions(self) -> None:
        require_compiler()
        # Not self.build_temp, which pip deletes: the next build should compile only what has changed.
        sanitize = os.environ.get("MSVIT_SANITIZE", "")
        tag = "-".join(filter(None, [sysconfig.get_config_var("SOABI") or "native", sanitize.replace(",", "-")]))
        build_dir = ROOT / "build" / f"cmake-{tag}"
        # Passed at every run instead of left to CMake's cache, because pip's build isolation moves these each time.
        import pybind11

        cuda_off = os.environ.get("MSVIT_BUILD_CUDA", "1").lower() in ("0", "off", "false", "no")
        options = {
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "Python_EXECUTABLE": sys.executable,
            "MSVIT_SANITIZE": sanitize,
            "MSVIT_BUILD_CUDA": "OFF" if cuda_off else "ON",
            "MSVIT_CUDA_ARCHS": os.environ.get("MSVIT_CUDA_ARCHS", ""),
            # Reset, so that a value from an earlier CMAKE_ARGS does not stay in CMake's cache.
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
            sys.exit("msvit: the build of the native kernels failed; see the messages above.")


setup(
    # Optional, so that setuptools accepts a build in which CMake leaves _cuda out.
    ext_modules=[Extension("msvit_kernels._C", []), Extension("msvit_kernels._cuda", [], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
