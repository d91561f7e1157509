"""The Triton kernels compile for every architecture and stay within their bounds, on a machine without a GPU."""

import csv
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "msvit_kernels" / "triton"
KERNELS = {
    (path.stem, name)
    for path in PACKAGE.glob("*.py")
    for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), flags=re.MULTILINE)
}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_aot(*arguments, **environment):
    """Runs aot in a process of its own, because this one may have imported Triton for the interpreter."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    command = [sys.executable, "-m", "msvit_kernels.triton.aot", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    path = tmp_path_factory.mktemp("aot") / "aot.csv"
    process = run_aot("--quick", "--archs", "80,90,100", "--csv", str(path))
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    return process, rows


def test_every_kernel_stays_within_its_bounds(compiled):
    process, rows = compiled
    assert process.returncode == 0, process.stdout + process.stderr
    assert [row for row in rows if row["verdict"] != "ok"] == []


def test_every_kernel_is_compiled_for_every_architecture(compiled):
    _, rows = compiled
    assert len(KERNELS) >= 11
    for arch in ("80", "90", "100"):
        assert {(row["operator"], row["kernel"]) for row in rows if row["arch"] == arch} == KERNELS


def test_resources_are_read_from_the_machine_code(compiled):
    _, rows = compiled
    for row in rows:
        assert 16 <= int(row["registers"]) <= 255, row
    products = [row for row in rows if row["operator"] == "varlen_attention"]
    assert all(int(row["shared_bytes"]) > 0 for row in products)


def test_a_kernel_above_a_bound_fails_the_run():
    code = (
        "import sys\n"
        "from msvit_kernels.triton import aot, common\n"
        "aot.SHARED_KB[90] = 1\n"
        "rows = aot.compile_case(0, 90, quick=True)\n"
        "sys.exit(0 if any('shared memory above 1024' in row.verdict for row in rows) else 1)\n"
    )
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    assert subprocess.run([sys.executable, "-c", code], env=variables, timeout=600).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--archs", "75"], {}, "bounds are known for 80, 90, 100"),
        (["--archs", "90"], {"TRITON_INTERPRET": "1"}, "TRITON_INTERPRET=1 is set"),
    ],
    ids=["unknown_architecture", "interpreter"],
)
def test_wrong_calls_are_refused(arguments, environment, words):
    process = run_aot(*arguments, **environment)
    assert process.returncode == 2
    assert words in process.stderr
