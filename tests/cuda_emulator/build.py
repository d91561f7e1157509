"""Builds the emulator into build/cuda_emulator/, with CMake, Ninja and a C++ compiler."""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
ROOT = SOURCES.parents[1]
MODULE = "_cuda_emulated"
SELFTEST = "_emulator_selftest"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


class UnavailableError(Exception):
    """The emulator cannot be built here; the text is the reason."""


def find_tool(name: str) -> str:
    """Path of a build tool, beside Python or on PATH."""
    beside_python = Path(sys.executable).parent / name
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if found is None:
        raise UnavailableError(f"the CUDA emulator needs {name} (in the extra `test`)")
    return found


def build_folder() -> Path:
    """Folder of the build, different for each Python, each set of sanitizers, and with or without fp16 kernels."""
    sanitize = os.environ.get("MSVIT_SANITIZE", "").replace(",", "-")
    kind = "" if fp16_kernels() == "ON" else "bf16"
    name = "-".join(filter(None, [sysconfig.get_config_var("SOABI"), sanitize, kind]))
    return ROOT / "build" / "cuda_emulator" / name


def fp16_kernels() -> str:
    """ON or OFF; MSVIT_EMULATOR_FP16=OFF leaves the fp16 kernels out, which halves the build time."""
    return os.environ.get("MSVIT_EMULATOR_FP16", "ON").upper()


def build(target: str) -> Path:
    """Builds the changed parts of a module, and returns its path.

    Raises:
        UnavailableError: a tool or package that the build needs is missing.
        RuntimeError: the build failed; the text has its messages.
    """
    if not (ROOT / "csrc").exists():
        raise UnavailableError("the CUDA emulator needs the source tree")
    if importlib.util.find_spec("pybind11") is None:
        raise UnavailableError("the CUDA emulator needs pybind11 (in the extra `test`)")
    if not any(map(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"])):
        raise UnavailableError("the CUDA emulator needs a C++ compiler")
    cmake, ninja, folder = find_tool("cmake"), find_tool("ninja"), build_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "build.ninja").exists():
            run(configuration(cmake, ninja, folder))
        run([cmake, "--build", folder, "--target", target])
    return folder / (target + SUFFIX)


def build_or_explain() -> str:
    """Path of the built emulator; if it cannot be built, prints the reason and returns an empty text."""
    try:
        return str(build(MODULE))
    except (UnavailableError, RuntimeError) as reason:  # test_cuda_emulator.py skips or fails
        print(f"no CUDA emulator: {reason}")
        return ""


def configuration(cmake: str, ninja: str, folder: Path) -> list:
    """The command that configures the build."""
    import pybind11

    options = {
        "MSVIT_SANITIZE": os.environ.get("MSVIT_SANITIZE", ""),
        "MSVIT_CUDA_FP16": fp16_kernels(),
        "CMAKE_MAKE_PROGRAM": ninja,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "Python_EXECUTABLE": sys.executable,
    }
    defines = [f"-D{key}={value}" for key, value in options.items()]
    return [cmake, "-S", SOURCES, "-B", folder, "-G", "Ninja", *defines]


def run(command: list) -> None:
    """Runs a build step silently; if it fails, its output is the message of the error."""
    # The sanitizers' libraries may be preloaded into the tests; compilers fail with them.
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"building the CUDA emulator failed:\n{done.stdout}{done.stderr}")
