"""Reports the resources of the CUDA kernels for each architecture, and checks them against their bounds.

    python .ci/cuda_kernels.py [--compile ARCH,...]

The script reads the built `_cuda`. With `--compile`, nvcc also compiles the sources for other architectures, only in
bf16, because fp16 kernels differ only in the type. No GPU is needed. The run fails if a kernel uses local memory, more
registers than a thread may have, or more static shared memory than a block has by default. It also fails if `_cuda` was
not built for an architecture of MSVIT_CUDA_ARCHS, or if a kernel of a source is missing. The dynamic shared memory of a
launch depends on the GPU: tests/kernels/test_cuda_kernels.py checks it against several limits.
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
# Output of cuobjdump for one architecture, and in it for each kernel.
MACHINE_CODE = re.compile(r"^Fatbin elf code:\n=+\narch = sm_(\S+)\n(.*?)(?=^Fatbin |\Z)", re.DOTALL | re.MULTILINE)
KERNEL = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def readable(name: str) -> str:
    """A kernel's name as in the source, without its arguments and namespaces."""
    done = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True)
    short = re.sub(r"\(anonymous namespace\)::|msvit::cuda::|^void ", "", done.stdout.strip())
    return re.sub(r"\(.*\)$", "", short)


def faults(registers: int, in_memory: int, static: int) -> list[str]:
    """Reasons why a kernel fails the run."""
    found = [f"{in_memory} bytes of local memory"] if in_memory else []
    found += [f"{registers} registers"] if registers > MAX_REGISTERS else []
    return found + ([f"{static} bytes of static shared memory"] if static > MAX_STATIC else [])


def resources(file: Path | str) -> str:
    """Resource usage of the kernels in a file, as cuobjdump prints it."""
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compiled(sources: list[Path], arch: str) -> str:
    """Resource usage of the kernels in the sources, compiled for one architecture, as cuobjdump prints it."""
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
    parser.add_argument(
        "--compile", metavar="ARCH,...", default="", help="architectures beyond those of _cuda, such as 80,100a"
    )
    options = parser.parse_args()
    in_sources = {source: kernels_of(source.read_text()) for source in CSRC.glob("cuda/*.cu")}
    in_sources = {source: names for source, names in in_sources.items() if names}
    built = MACHINE_CODE.findall(resources(_cuda.__file__))
    code = {
        wanted: "".join(body for arch, body in built if arch == wanted)
        for wanted in os.environ.get("MSVIT_CUDA_ARCHS", "80;90a").split(";")
    }
    if not _cuda.build_info()["fp16"]:
        sys.exit("CUDA kernels: _cuda is built without fp16 kernels")
    for arch in filter(None, options.compile.split(",")):
        if arch in code:
            parser.error(f"--compile: expected architectures that MSVIT_CUDA_ARCHS does not name, got {arch}")
        code[arch] = compiled(list(in_sources), arch)
    refused = []
    for wanted, text in code.items():
        missing = [name for names in in_sources.values() for name in names if name not in text]
        refused += [f"sm_{wanted}: {name} is missing" for name in missing]
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
