"""Compiles every CUDA source for each architecture of MSVIT_CUDA_ARCHS and reports what ptxas says of its kernels.

No GPU is needed. A kernel that spills, or uses more registers than a thread may have, fails the run.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
MAX_REGISTERS = 255
# What ptxas -v prints for each kernel, over three lines.
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\S+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def report(source: Path, arch: str) -> list[tuple[str, int, int, str]]:
    """(kernel, registers, spilled bytes, the rest of the line) of one source; exits where it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++17", "-O3", "-Xptxas", "-v", f"-gencode=arch=compute_{arch},code=sm_{arch}"]
        command += ["-I", str(CSRC), "-c", str(source), "-o", f"{folder}/out.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{source.name} does not compile for sm_{arch}:\n{done.stderr}")
    return [
        (m["name"], int(m["registers"]), int(m["stores"]) + int(m["loads"]), m["rest"].strip(", "))
        for m in KERNEL.finditer(done.stderr)
    ]


def main() -> None:
    """Reports every source for every architecture."""
    architectures = os.environ.get("MSVIT_CUDA_ARCHS", "80;90a;100a").split(";")
    sources = sorted(CSRC.glob("cuda/*.cu"))
    refused = []
    for source in sources:
        for arch in architectures:
            kernels = report(source, arch)
            print(f"{source.name} sm_{arch}: compiles, {len(kernels)} kernels")
            for name, registers, spilled, rest in kernels:
                print(f"  {name}: {registers} registers, {spilled} bytes spilled, {rest}")
                if spilled or registers > MAX_REGISTERS:
                    refused.append(f"{source.name} sm_{arch} {name}")
    if refused:
        sys.exit("kernels over their bounds: " + ", ".join(refused))


if __name__ == "__main__":
    main()
