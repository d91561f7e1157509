"""Reports what the CUDA kernels need for each architecture, and holds them to their bounds.

    python .ci/cuda_kernels.py [--compile ARCH]

Reads the built `_cuda`, and with `--compile` what nvcc makes of the sources for one architecture more, in bf16 (fp16
kernels differ in the type alone). No GPU is needed. A kernel that keeps anything in local memory, uses more registers
than a thread may have, or more static shared memory than a block gets without asking, fails the run; so does an
architecture of MSVIT_CUDA_ARCHS that `_cuda` was not built for, and a source whose kernels are missing. How much
dynamic shared memory a launch asks for depends on the card: tests/kernels/test_cuda_kernels.py holds it against several limits.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import triton

from msvit_kernels import _cuda

CSRC = Path(__file__).resolve().parent.parent / "csrc"
MAX_REGISTERS = 255
MAX_STATIC = 48 * 1024
# What cuobjdump prints of one architecture, and there of each kernel.
MACHINE_CODE = re.compile(r"^Fatbin elf code:\n=+\narch = sm_(\S+)\n(.*?)(?=^Fatbin |\Z)", re.DOTALL | re.MULTILINE)
KERNEL = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def readable(name: str) -> str:
    """A kernel's name as in the source, without its arguments and namespaces."""
    done = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True)
    short = re.sub(r"\(anonymous namespace\)::|msvit::cuda::|^void ", "", done.stdout.strip())
    return re.sub(r"\(.*\)$", "", short)


def faults(registers: int, in_memory: int, static: int) -> list[str]:
    """What is wrong with a kernel, of the things that fail the run."""
    found = [f"{in_memory} bytes of local memory"] if in_memory else []
    found += [f"{registers} registers"] if registers > MAX_REGISTERS else []
    return found + ([f"{static} bytes of static shared memory"] if static > MAX_STATIC else [])


def resources(file: Path | str) -> str:
    """What cuobjdump says of the kernels in a file."""
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compiled(sources: list[Path], arch: str) -> str:
    """What cuobjdump says of the sources, compiled for one architecture."""
    flags = ["-O3", "-std=c++17", f"-arch=sm_{arch}", "-DNDEBUG", "-DMSVIT_NO_FP16", f"-I{CSRC}"]
    with tempfile.TemporaryDirectory() as folder:

        def compile_one(source: Path) -> str:
            cubin = Path(folder) / f"{source.stem}.cubin"
            subprocess.run(["nvcc", *flags, "-cubin", str(source), "-o", str(cubin)], check=True)
            return resources(cubin)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return "".join(pool.map(compile_one, sources))


def main() -> None:
    """Reports every kernel for every architecture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--compile", metavar="ARCH", help="such as 100a: an architecture that _cuda was not built for")
    options = parser.parse_args()
    in_sources = {source: kernels_of(source.read_text()) for source in CSRC.glob("cuda/*.cu")}
    in_sources = {source: names for source, names in in_sources.items() if names}
    built = MACHINE_CODE.findall(resources(_cuda.__file__))
    code = {
        wanted: "".join(body for arch, body in built if arch == wanted)
        for wanted in os.environ.get("MSVIT_CUDA_ARCHS", "80;90a").split(";")
    }
    if not _cuda.build_info()["fp16"]:
        sys.exit("CUDA kernels: _cuda is built without those for fp16")
    if options.compile in code:
        parser.error(f"--compile: expected an architecture that MSVIT_CUDA_ARCHS does not name, got {options.compile}")
    if options.compile:
        code[options.compile] = compiled(list(in_sources), options.compile)
    refused = []
    for wanted, text in code.items():
        missing = [name for names in in_sources.values() for name in names if name not in text]
        refused += [f"sm_{wanted}: there is no {name}" for name in missing]
        for name, *numbers in KERNEL.findall(text):
            registers, stack, static, local = map(int, numbers)
            print(f"sm_{wanted}: {registers:3} registers, {stack + local} bytes of local memory: {readable(name)}")
            refused += [f"{name} sm_{wanted}: {fault}" for fault in faults(registers, stack + local, static)]
    if refused or not in_sources:
        sys.exit("CUDA kernels:\n" + "\n".join(refused))


def kernels_of(source: str) -> list[str]:
    """Names of the kernels that a source defines."""
    return re.findall(r"__global__[^{;]*?\bvoid\s+(\w+)\(", source)


if __name__ == "__main__":
    main()
