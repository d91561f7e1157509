"""The compiled modules: instruction-set levels, named arguments, and the errors of builds that cannot work."""

import ast
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import msvit_kernels
from msvit_kernels.native_fields import AttentionFields
from tests import cuda_emulator

ROOT = Path(__file__).resolve().parents[2]

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


def compiled_levels() -> list[str]:
    try:
        native = importlib.import_module("msvit_kernels._C")
    except ImportError:
        return []
    return list(native.cpu_info()["isa_compiled"])


@pytest.mark.skipif(platform.machine() != "x86_64" or os.environ.get("CMAKE_ARGS", "") != "", reason="other levels")
def test_a_plain_build_has_all_levels():
    native = pytest.importorskip("msvit_kernels._C")
    if native.cpu_info()["sanitize"]:
        pytest.skip("sanitized builds have the levels of this CPU")
    assert native.cpu_info()["isa_compiled"] == ["portable", "avx2", "avx512", "avx512bf16"]


@pytest.mark.parametrize("level", compiled_levels())
def test_every_isa_level_matches_fp64(level):
    native = pytest.importorskip("msvit_kernels._C")
    if level not in native.cpu_info()["isa_supported"]:
        pytest.skip(f"this CPU cannot run {level}")
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


# ---- named arguments


def stub_arguments(stub):
    """Arguments of each function in a stub: names, and whether they must be named."""
    tree = ast.parse((Path(msvit_kernels.__file__).parent / stub).read_text())
    shared = {"TypedDict": [], "AttentionFields": [(name, True) for name in AttentionFields.__annotations__]}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            inherited = [argument for base in node.bases for argument in shared[base.id]]
            own = [(line.target.id, True) for line in node.body if isinstance(line, ast.AnnAssign)]
            shared[node.name] = inherited + own
    return {node.name: arguments_of(node, shared) for node in tree.body if isinstance(node, ast.FunctionDef)}


def arguments_of(function, shared):
    """Arguments of a function, in which `**inputs: Unpack[X]` stands for the fields of X, which come first."""
    others = shared[function.args.kwarg.annotation.slice.id] if function.args.kwarg else []
    own = [(x.arg, False) for x in function.args.args] + [(x.arg, True) for x in function.args.kwonlyargs]
    return others + own


def compiled_arguments(module):
    """The same for the functions in a compiled module."""
    functions = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    return {name: signature_of(function) for name, function in functions.items()}


def signature_of(function):
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # pybind11 writes its signatures into the first line of the docstring only
        return arguments_of(ast.parse(f"def {function.__doc__.splitlines()[0]}: ...").body[0], {})
    return [(x.name, x.kind is x.KEYWORD_ONLY) for x in parameters]


def test_the_stub_of_the_cpu_module_is_right():
    native = pytest.importorskip("msvit_kernels._C")
    assert compiled_arguments(native) == stub_arguments("_C.pyi")


def test_the_stub_of_the_cuda_module_is_right():
    # The one that is built in the package; an import would find the emulator first.
    spec = importlib.machinery.PathFinder.find_spec("msvit_kernels._cuda", msvit_kernels.__path__)
    if spec is None:
        pytest.skip("_cuda is not built")
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    assert native.build_info()["device"] == "cuda"
    assert compiled_arguments(native) == stub_arguments("_cuda.pyi")


@pytest.mark.skipif(not cuda_emulator.is_installed(), reason="needs the emulator")
def test_the_emulator_has_the_functions_of_the_cuda_module():
    from msvit_kernels import _cuda

    assert _cuda.build_info()["device"] == "cpu"
    device = [("num_multiprocessors", False), ("shared_memory_bytes", False)]
    own = {"emulator_statistics": [], "emulator_device": device}
    assert compiled_arguments(_cuda) == stub_arguments("_cuda.pyi") | own


@pytest.fixture
def attention_call():
    """Arguments of varlen_attention_fwd for one token, whose output is its value."""
    names = [name for name, _ in stub_arguments("_C.pyi")["varlen_attention_fwd"]]
    tensors = {name: torch.randn(16) for name in ("q", "k", "v")} | {"out": torch.zeros(16), "lse": torch.zeros(1)}
    tensors |= dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), torch.tensor([0, 1], dtype=torch.int32))
    others = {"key_weight": 0, "head_dim": 16, "softmax_scale": 0.25, "is_bf16": False}
    addresses = {name: x.data_ptr() for name, x in tensors.items()}
    return dict.fromkeys(names, 1) | others | addresses, tensors


def test_arguments_have_names_and_no_order(attention_call):
    native = pytest.importorskip("msvit_kernels._C")
    arguments, tensors = attention_call
    # Names that are equal, but not the objects that Python keeps for names in source text.
    copies = {"".join(list(name)): value for name, value in arguments.items()}
    for named in (arguments, dict(reversed(arguments.items())), copies, arguments | {"softmax_scale": 1}):
        tensors["out"].zero_()
        assert native.varlen_attention_fwd(**named) is None
        torch.testing.assert_close(tensors["out"], tensors["v"])


WRONG_VALUES = {
    "q": (None, 1.0, True, "1", -1, 2**64),
    "batch": (None, 1.0, True, torch.tensor(1), 2**63, -(2**63) - 1),
    "num_threads": (1.0, 2**31, -(2**31) - 1, 2**64),
    "softmax_scale": (None, "1", False, torch.tensor(1.0), 10**400),
    "is_bf16": (None, 0, 1.0),
}


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_an_argument_of_a_wrong_type_is_an_error(name, attention_call):
    native = pytest.importorskip("msvit_kernels._C")
    for value in WRONG_VALUES[name]:
        expected = rf"^varlen_attention_fwd: argument '{name}': expected an? .*, got {type(value).__name__}$"
        with pytest.raises(TypeError, match=expected):
            native.varlen_attention_fwd(**attention_call[0] | {name: value})


@pytest.mark.parametrize("mean", [None, [0.0, 0.0, 0.0], (0.0, 0.0), (0.0, 0.0, "0")], ids=str)
def test_a_tuple_has_three_floats(mean):
    native = pytest.importorskip("msvit_kernels._C")
    arguments = {name: 0 for name, _ in stub_arguments("_C.pyi")["mixed_scale_embed_fwd"]}
    with pytest.raises(TypeError, match="'mean': expected a tuple of three floats, got "):
        native.mixed_scale_embed_fwd(**arguments | {"mean": mean})


def test_missing_unknown_doubled_and_nameless_arguments_are_errors(attention_call):
    forward = pytest.importorskip("msvit_kernels._C").varlen_attention_fwd
    arguments, _ = attention_call
    for name in arguments:
        without = {key: value for key, value in arguments.items() if key != name}
        for wrong in (without, without | {name + "_": 0}):
            with pytest.raises(TypeError, match=f"^varlen_attention_fwd: missing argument '{name}'$"):
                forward(**wrong)
    with pytest.raises(TypeError, match=r"^varlen_attention_fwd: missing argument 'q'$"):
        forward()
    with pytest.raises(TypeError, match=r"^varlen_attention_fwd: unknown argument 'query'$"):
        forward(**arguments, query=0)
    with pytest.raises(TypeError, match=r"varlen_attention_fwd\(\) got multiple values for keyword argument 'q'"):
        forward(q=0, **arguments)
    for wrong in (arguments, {}):
        with pytest.raises(TypeError, match=r"^varlen_attention_fwd: expected named arguments only, got 2 without"):
            forward(0, 0, **wrong)


# ---- builds


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
