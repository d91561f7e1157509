"""The base install works without training, evaluation and reports; their commands name the pip command to run."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {"scikit-learn": "sklearn"}

# Not a finder that raises: torch asks for the specification of many packages and expects None for one that is missing.
BLOCK = """
import sys

sys.modules.update(dict.fromkeys({blocked}))
"""

BASE = """
import msvit, torch
from typer.testing import CliRunner
from msvit.cli import app
from msvit.training import load_run, make_config

model = msvit.create_model("msvit_tiny_patch16_32_64", gate="entropy", depth=1, num_classes=3).eval()
model.policy = msvit.policies.Budget(10)
logits = model(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
assert logits.shape == (2, 3)
msvit.save_checkpoint(model, sys.argv[1] + "/model.safetensors")
assert msvit.load_checkpoint(model, sys.argv[1] + "/model.safetensors") == []
loss = msvit.losses.GeneralizedBatchShapingLoss(0.25, (2, 2))
loss(torch.randn(4, 4)).backward()
for command in ("--help", "info", "train --help", "eval --help", "report --help"):
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
result = CliRunner().invoke(app, ["tokens", "astronaut", "-o", sys.argv[1] + "/tokens.png"])
assert result.exit_code == 0, result.output
for command in ("train --preset digits", "eval model.safetensors", "report run"):
    result = CliRunner().invoke(app, command.split())
    assert (result.exit_code, result.stderr) == (1, "error: " + LINE + "\\n"), result.output
try:
    from msvit.training import start_run
except ImportError as error:
    assert str(error) == LINE
else:
    raise AssertionError("start_run was imported")
print("works")
"""

LINE = 'accelerate, sklearn, torchmetrics are not installed; run: pip install "msvit[train]"'


def extra(name: str) -> set[str]:
    """Modules of the packages of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = [re.split("[<>=]", requirement)[0] for requirement in project["optional-dependencies"][name]]
    return {MODULES.get(package, package) for package in packages}


def test_the_base_install_works_and_names_the_line_that_installs_the_extra(tmp_path: Path) -> None:
    """One process for all of it: each takes seconds to import torch and timm."""
    blocked = extra("train") | extra("tensorboard") | extra("data")
    code = BLOCK.format(blocked=blocked) + f"LINE = {LINE!r}\n" + BASE
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("works\n")
