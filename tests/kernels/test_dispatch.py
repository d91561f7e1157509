"""The table of backends: no silent fallback, a reason for every refusal, an import without optional packages."""

import inspect
import subprocess
import sys
import typing

import pytest
import torch

import msvit_kernels
from msvit_kernels import BACKENDS, OPERATORS, calls, dispatch, testing, varlen_attention
from msvit_kernels.ops import arguments


def attention_inputs(dtype=torch.float32, head_dim=16):
    q, k, v = testing.qkv_views(5, 2, head_dim, dtype)
    return q, k, v, testing.offsets([2, 3]), 3


def test_named_backend_that_cannot_run_gives_every_reason():
    with pytest.raises(NotImplementedError, match="backend 'cpu' cannot run these inputs") as raised:
        varlen_attention(*attention_inputs(torch.float64), backend="cpu")
    for name in BACKENDS:
        assert f"\n  {name}: " in str(raised.value)
    assert "reference: supports it" in str(raised.value)


def test_unknown_backend_is_a_value_error():
    with pytest.raises(ValueError, match=r"backend: expected one of cpu, cuda, triton, reference or None, got 'gpu'"):
        varlen_attention(*attention_inputs(), backend="gpu")


def test_none_takes_the_first_that_supports_the_inputs():
    assert dispatch.resolve("varlen_attention", None, "cpu", torch.float64, head_dim=16) == "reference"
    supported = testing.backends_for("varlen_attention", "cpu", torch.float32, head_dim=64)
    assert dispatch.resolve("varlen_attention", None, "cpu", torch.float32, head_dim=64) == supported[0]


@pytest.fixture
def fresh_choices():
    """Clears earlier choices, and those made with a test's own table."""
    cached = dispatch.unsupported_reason, dispatch.resolve, dispatch.resolve_function
    for each in cached:
        each.cache_clear()
    yield lambda: [each.cache_clear() for each in cached]
    for each in cached:
        each.cache_clear()


@pytest.mark.parametrize("name", ["varlen_attention_fwd", "varlen_attention_bwd"])
def test_attention_on_a_gpu_is_chosen_by_length(monkeypatch, fresh_choices, name):
    taken = {backend: lambda backend=backend: backend for backend in BACKENDS}
    refusals = {"cpu": "runs on CPUs"}
    monkeypatch.setattr(dispatch, "unsupported_reason", lambda operator, backend, *_, **__: refusals.get(backend))
    monkeypatch.setattr(dispatch, "function", lambda operator, backend, name: taken[backend])
    hopper = [True]
    monkeypatch.setattr(dispatch, "_is_hopper", lambda device: hopper[0])

    def chosen(max_seqlen, backend=None, device_type="cuda"):
        device = torch.device(device_type)
        return dispatch.attention_function(name, backend, max_seqlen, device, torch.bfloat16, 64)()

    longest = dispatch.LONGEST_FOR_CUDA[name]
    assert [chosen(longest), chosen(longest + 1)] == ["cuda", "triton"]
    assert chosen(longest + 1, backend="cuda") == "cuda"  # whoever names a backend gets it
    assert chosen(longest + 1, device_type="cpu") == "cuda"  # the emulator, in the order of the table
    hopper[0] = False
    assert chosen(longest + 1) == "cuda"
    hopper[0] = True
    refusals["triton"] = "is missing"
    fresh_choices()
    assert chosen(longest + 1) == "cuda"


RAW_FUNCTIONS = {
    "varlen_attention": ("varlen_attention_fwd", "varlen_attention_bwd"),
    "mixed_scale_layout": ("mixed_scale_layout_offsets", "mixed_scale_layout_fwd"),
    "mixed_scale_embed": ("mixed_scale_embed_fwd", "mixed_scale_embed_bwd"),
    "unpack_to_grid": ("unpack_to_grid_fwd", "unpack_to_grid_bwd"),
}
# What this machine can import; `cuda` has attention alone, and needs its compiled module.
COLUMNS = [(operator, backend) for operator in OPERATORS for backend in BACKENDS]


def column(operator, backend):
    module = dispatch._load(backend, operator)
    if isinstance(module, str):
        assert backend == "cuda", module
        pytest.skip(module)
    return module


def test_every_operator_is_known():
    assert set(RAW_FUNCTIONS) == set(OPERATORS)


@pytest.mark.parametrize(("operator", "backend"), COLUMNS)
def test_every_backend_has_every_raw_function_with_the_signature_of_the_reference(operator, backend):
    for name in RAW_FUNCTIONS[operator]:
        signatures = []
        for module in (column(operator, backend), column(operator, "reference")):
            function = getattr(module, name)
            hints = typing.get_type_hints(function)
            assert [*inspect.signature(function).parameters, "return"] == [*hints], f"{module.__name__}.{name}"
            signatures.append([*hints.values()])
        assert signatures[0] == signatures[1], f"{backend} {name}"
        record, *_ = signatures[0]
        assert record in vars(calls).values(), f"{name} takes {record}"


@pytest.mark.parametrize(("operator", "backend"), COLUMNS)
def test_backends_name_options_that_exist_and_the_reference_has_them_all(operator, backend):
    module, known = column(operator, backend), set()
    for name in RAW_FUNCTIONS[operator]:
        record, _ = typing.get_type_hints(getattr(module, name)).values()
        known |= {option for option, _, _ in arguments.known_options(record)}
    assert known >= module.OPTIONS
    assert backend != "reference" or known == module.OPTIONS


def test_an_option_that_a_backend_does_not_name_is_refused(monkeypatch, fresh_choices):
    inputs, weight = attention_inputs(), torch.ones(5)
    first, second = testing.backends_for("varlen_attention", "cpu", torch.float32, head_dim=16)[:2]
    monkeypatch.setattr(column("varlen_attention", first), "OPTIONS", frozenset())
    fresh_choices()
    with pytest.raises(
        NotImplementedError, match=rf"(?s)head_dim 16, key_weight.*{first}: does not take key_weight"
    ) as error:
        varlen_attention(*inputs, key_weight=weight, backend=first)
    assert f"{second}: supports it" in str(error.value)
    assert varlen_attention(*inputs, backend=first).shape == (5, 2, 16)
    assert (
        dispatch.resolve("varlen_attention", None, "cpu", torch.float32, options=("key_weight",), head_dim=16) == second
    )


def test_the_types_of_attention_name_each_optional_argument():
    module = sys.modules["msvit_kernels.varlen_attention"]
    parameters = inspect.signature(varlen_attention).parameters.values()
    optional = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert optional == {*module._Options.__annotations__, "return_lse"}


def test_explain_names_every_operator_and_every_missing_backend():
    text = msvit_kernels.explain()
    for operator in OPERATORS:
        assert f"{operator}: takes" in text
    assert "cuda: " in text
    assert torch.__version__ in text


BLOCKED_IMPORT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton" or name in ("msvit_kernels._C", "msvit_kernels._cuda"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import torch
import msvit_kernels as mk
from msvit_kernels import dispatch, testing

assert dispatch.resolve("varlen_attention", None, "cpu", torch.float32, head_dim=64) == "reference"
q, k, v = testing.qkv_views(5, 2, 16, torch.float32)
assert mk.varlen_attention(q, k, v, testing.offsets([2, 3]), 3).shape == (5, 2, 16)
try:
    mk.varlen_attention(q, k, v, testing.offsets([2, 4]), 4)
except ValueError as error:
    assert "cu_seqlens: expected to end at the number of tokens 5, got 6" in str(error), error
else:
    raise AssertionError("wrong offsets were accepted")
text = mk.explain()
assert "No module named 'msvit_kernels._C'" in text and "triton: missing" in text, text
print("works without triton and without the native module")
"""


def test_works_in_a_fresh_process_without_triton_and_native_modules():
    done = subprocess.run([sys.executable, "-c", BLOCKED_IMPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "works without triton" in done.stdout


def test_import_loads_no_backend():
    code = "import sys, msvit_kernels; print([m for m in sys.modules if m.startswith('msvit_kernels.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for backend in BACKENDS:
        assert f"msvit_kernels.{backend}" not in done.stdout
