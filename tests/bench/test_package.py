"""The package as callers use it: no file shadows a module, and scripts run from another folder."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import ROOT

BENCH = ROOT / "bench"


def test_no_file_shadows_a_module():
    """The folder of a script comes first in sys.path, so its files could shadow modules."""
    names = {path.stem for path in BENCH.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert not names & sys.stdlib_module_names
    required = {re.split(r"[^\w.-]", line)[0].lower() for line in importlib.metadata.requires("msvit") or ()}
    installed = importlib.metadata.packages_distributions()
    assert "torch" in required & set(installed)
    assert not names & {name for name, owners in installed.items() if required & {owner.lower() for owner in owners}}


@pytest.mark.parametrize("name", ["latency", "train_step", "bench_mixed_scale_layout"])
def test_scripts_run_from_another_folder(tmp_path, name):
    """With the root in sys.path, as after `pip install -e .`."""
    script = (
        f"import runpy, sys; sys.path[0] = {str(BENCH)!r}; sys.path.append({str(ROOT)!r}); sys.argv[1:] = ['--help']; "
        f"runpy.run_path({str(BENCH / name) + '.py'!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--device" in result.stdout


def test_nothing_alters_the_path_of_modules():
    for path in [*BENCH.rglob("*.py"), *(ROOT / "tests" / "bench").glob("*.py")]:
        if path != Path(__file__):
            assert "sys.path" not in path.read_text(), path
