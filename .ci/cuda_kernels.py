"""Reports what the kernels of the built `_cuda` need for each architecture, and holds them to their bounds.

No GPU is needed. A kernel that keeps anything in local memory, uses more registers than a thread may have, or more
static shared memory than a block gets without asking, fails the run; so does an architecture of MSVIT_CUDA_ARCHS that
`_cuda` was not built for, and a source whose kernels it lacks. How much dynamic shared memory a launch asks for depends
on the card: tests/test_cuda_kernels.py holds it against the limits of several.
"""

import os
import re
import subprocess
import sys
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


def main() -> None:
    """Reports every kernel for every architecture."""
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", _cuda.__file__]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    in_sources = {name for file in CSRC.glob("cuda/*.cu") for name in kernels_of(file.read_text())}
    refused = []
    for wanted in os.environ.get("MSVIT_CUDA_ARCHS", "80;90a").split(";"):
        code = "".join(body for arch, body in MACHINE_CODE.findall(text) if arch == wanted)
        missing = [name for name in sorted(in_sources) if name not in code]
        refused += [f"sm_{wanted}: _cuda has no {name}" for name in missing]
        for name, *numbers in KERNEL.findall(code):
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
