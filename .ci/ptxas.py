"""Compiles every CUDA source for each architecture of MSVIT_CUDA_ARCHS and reports what ptxas says of its kernels.

No GPU is needed. A kernel that spills, uses more registers than a thread may have, or more static shared memory than a
block gets without asking, fails the run; so does a source whose kernels ptxas does not report. How much dynamic shared
memory a launch asks for depends on the card: tests/test_cuda_kernels.py holds it against the limits of several.
"""

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
MAX_REGISTERS = 255
MAX_STATIC = 48 * 1024
# What ptxas -v prints for each kernel, over three lines.
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\S+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def compile_report(source: Path, arch: str) -> str:
    """What nvcc and ptxas print for one source; exits where it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++17", "-O3", "-Xptxas", "-v", f"-gencode=arch=compute_{arch},code=sm_{arch}"]
        command += ["-I", str(CSRC), "-c", str(source), "-o", f"{folder}/out.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{source.name} does not compile for sm_{arch}:\n{done.stderr}")
    return done.stderr


def readable(name: str) -> str:
    """A kernel's name as in the source, without its arguments and namespaces."""
    done = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True)
    return re.sub(r"\(anonymous namespace\)::|msvit::cuda::|\(.*?\)|^void ", "", done.stdout.strip())


def faults(spilled: int, registers: int, rest: str) -> list[str]:
    """What is wrong with a kernel, of the things that fail the run."""
    static = re.search(r"(\d+) bytes smem", rest)
    found = [f"{spilled} bytes spilled"] if spilled else []
    found += [f"{registers} registers"] if registers > MAX_REGISTERS else []
    return found + ([f"{static[1]} bytes of static shared memory"] if static and int(static[1]) > MAX_STATIC else [])


def main() -> None:
    """Reports every source for every architecture."""
    architectures = os.environ.get("MSVIT_CUDA_ARCHS", "80;90a;100a").split(";")
    jobs = [(source, arch) for source in sorted(CSRC.glob("cuda/*.cu")) for arch in architectures]
    refused = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (source, arch), text in zip(jobs, pool.map(lambda job: compile_report(*job), jobs), strict=True):
            kernels = [
                (readable(m["name"]), int(m["registers"]), int(m["stores"]) + int(m["loads"]), m["rest"])
                for m in KERNEL.finditer(text)
            ]
            print(f"{source.name} sm_{arch}: compiles, {len(kernels)} kernels", flush=True)
            if not kernels and "__global__" in source.read_text():
                refused.append(f"{source.name} sm_{arch}: ptxas reports none of its kernels")
            for name, registers, spilled, rest in kernels:
                print(f"  {registers:3} registers, {spilled} bytes spilled: {name}")
                refused += [f"{name} sm_{arch}: {fault}" for fault in faults(spilled, registers, rest)]
    if refused:
        sys.exit("kernels over their bounds:\n" + "\n".join(refused))


if __name__ == "__main__":
    main()
