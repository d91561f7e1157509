"""The compiled CPU module: every instruction-set level is right, and a build that cannot work says why."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ISA_LEVELS = ("portable", "avx2", "avx512", "avx512bf16")

# Forward and backward of every operator against fp64, in a process of its own: the level is read once.
OPERATORS_AT_ONE_LEVEL = """
import sys
import torch
import msvit_kernels as mk
from msvit_kernels import _C, testing

assert _C.cpu_info()["isa_chosen"] == sys.argv[1], _C.cpu_info()
torch.manual_seed(0)
cu_seqlens = testing.offsets([0, 1, 49, 70])
mask = torch.rand(3, 2, 3) < 0.5
mask[1] = True
layout = mk.mixed_scale_layout(mask, backend="cpu")
expected = mk.mixed_scale_layout(mask, backend="reference")
for name in ("cu_seqlens", "num_tokens", "region_start", "batch_index", "token_index"):
    assert torch.equal(getattr(layout, name), getattr(expected, name)), name

def attention(backend, q, k, v, key_weight):
    return mk.varlen_attention(q, k, v, cu_seqlens, 70, key_weight=key_weight, backend=backend)

def embed(backend, weight, bias, table, images):
    return mk.mixed_scale_embed(
        images, layout, weight, bias, table, patch_size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), backend=backend
    )

def unpack(backend, tokens):
    return mk.unpack_to_grid(tokens, layout, backend=backend)

def results(function, backend, inputs, dtype):
    # Weights of keys are at least fp32, whatever the dtype of the queries.
    wide = torch.promote_types(dtype, torch.float32)
    dtypes = [wide if x.ndim == 1 and function is attention else dtype for x in inputs]
    leaves = [x.detach().to(d).requires_grad_() for x, d in zip(inputs, dtypes)]
    out = function(backend, *leaves)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape).to(torch.bfloat16).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]

rand = lambda *shape: torch.randn(shape).to(torch.bfloat16).float()
cases = {
    attention: [*(rand(120, 2, 40) for _ in range(3)), torch.rand(120).round(decimals=1)],
    embed: [rand(50, 3, 8, 8) / 16, rand(50), rand(layout.num_candidates, 50), rand(3, 3, 32, 48)],
    unpack: [rand(layout.total_tokens, 72)],
}
for dtype in (torch.float32, torch.bfloat16):
    for function, inputs in cases.items():
        actual, eager, oracle = (
            results(function, backend, inputs, d)
            for backend, d in (("cpu", dtype), ("reference", dtype), ("reference", torch.float64))
        )
        for i, x in enumerate(actual):
            testing.assert_accurate(f"{function.__name__} result {i}, {dtype}", x, eager[i], oracle[i])
print("all operators agree")
"""


def run_at_level(level: str, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MSVIT_CPU_ISA": level, "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(
        [sys.executable, "-c", code, level], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize("level", ISA_LEVELS)
def test_every_isa_level_matches_fp64(level):
    native = pytest.importorskip("msvit_kernels._C")
    if level not in native.cpu_info()["isa_supported"]:
        pytest.skip(f"this CPU or build has no {level} level")
    done = run_at_level(level, OPERATORS_AT_ONE_LEVEL)
    assert done.returncode == 0, done.stderr
    assert "all operators agree" in done.stdout


def test_the_highest_supported_level_is_chosen():
    native = pytest.importorskip("msvit_kernels._C")
    info = native.cpu_info()
    assert info["isa_compiled"][: len(info["isa_supported"])] == info["isa_supported"]
    if "MSVIT_CPU_ISA" not in os.environ:
        assert info["isa_chosen"] == info["isa_supported"][-1]


def test_an_unknown_isa_level_is_an_error():
    pytest.importorskip("msvit_kernels._C")
    done = run_at_level("pentium", "import torch; from msvit_kernels import _C; _C.cpu_info()")
    assert done.returncode != 0
    assert "MSVIT_CPU_ISA: expected one of portable" in done.stderr
    assert "got 'pentium'" in done.stderr


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the tests run without the source tree")
def test_a_missing_compiler_is_one_clear_message(tmp_path):
    pytest.importorskip("setuptools")
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "CMAKE_ARGS")}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PATH": str(tmp_path)},
    )
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("msvit: no C++ compiler found"), done.stderr
    assert "Traceback" not in done.stderr


def find_cuda_compiler(folder: Path, gpu: bool, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs csrc/cuda/compiler.cmake where PATH has no nvcc, and nvidia-smi names a GPU or does not exist."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("cmake", "ninja"):
        found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if found is None:
            pytest.skip(f"needs {name}")
        script(tools / name, f'exec "{found}" "$@"')
    if gpu:
        script(tools / "nvidia-smi", "echo 'GPU 0: any'")
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(probe LANGUAGES NONE)\n"
        f'include("{ROOT}/csrc/cuda/compiler.cmake")\nmessage(STATUS "found ${{CMAKE_CUDA_COMPILER}}")\n'
    )
    return subprocess.run(
        [tools / "cmake", "-S", folder, "-B", folder / "build", "-G", "Ninja"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tools)} | environment,
    )


def script(path: Path, line: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="the tests run without the source tree")
@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_nvcc_is_found_off_path(variable, tmp_path):
    script(tmp_path / "bin" / "nvcc", "exit 0")
    done = find_cuda_compiler(tmp_path, gpu=True, **{variable: str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert f"found {tmp_path}/bin/nvcc" in done.stdout


@pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="the tests run without the source tree")
@pytest.mark.parametrize("gpu", [False, True])
def test_a_gpu_without_nvcc_is_an_error(gpu, tmp_path):
    done = find_cuda_compiler(tmp_path, gpu, CUDACXX=str(tmp_path / "none"))
    assert ("This machine has a GPU but no working nvcc" in done.stderr) == gpu, done.stdout + done.stderr
    assert (done.returncode != 0) == gpu
