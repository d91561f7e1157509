"""compute-sanitizer over every operator on small shapes."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.gpu_report import commands

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


@dataclass(frozen=True)
class Finding:
    """The verdict of one tool.

    Attributes:
        tool: name of the tool.
        ok: whether it found no error.
        text: its summary, and its first errors.
        result: its command.
    """

    tool: str
    ok: bool
    text: str
    result: commands.Result


def run_sanitizers(limit: float, tools: Sequence[str] = TOOLS, backend: str | None = None) -> list[Finding]:
    """Runs compute-sanitizer's tools on small shapes of one or all backends; no findings if it is not installed."""
    program = commands.find("compute-sanitizer")
    if program is None:
        return []
    # Without torch's memory cache, every tensor is an allocation of its own with known bounds.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    script = commands.module("gpu_report.small_shapes", "--device", "cuda")
    script += ["--backend", backend] if backend else []

    def run(tool: str) -> Finding:
        result = commands.run([program, "--tool", tool, "--error-exitcode", "86", *script], limit, env)
        return Finding(tool, result.ok, verdict(result, limit), result)

    # Nothing is timed, so the tools may run in parallel.
    with ThreadPoolExecutor(len(tools)) as pool:
        return list(pool.map(run, tools))


def verdict(result: commands.Result, limit: float) -> str:
    """The summary line of compute-sanitizer, and its first errors."""
    summaries = re.findall(r"={3,} (.*SUMMARY.*)", result.output)
    summary = summaries[-1] if summaries else "no summary"
    failed = re.findall(r"^FAILED .*", result.output, re.MULTILINE)
    errors = re.findall(r"^={3,} ((?!.*SUMMARY)(?:Invalid|Error|Uninitialized|Race|Barrier|Program hit).*)",
                        result.output, re.MULTILINE)  # fmt: skip
    details = [*failed[:3], *dict.fromkeys(errors[:3])]
    if not result.ok and not details:
        details.append(result.failure(limit))
    return "; ".join([summary, *details])
