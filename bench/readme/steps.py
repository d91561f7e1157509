"""The README's sentence on the training step."""

from collections.abc import Sequence

from bench.rows import Row


def step_lines(rows: Sequence[Row]) -> list[str]:
    """A sentence on the training step."""
    found = {row["method"]: row for row in rows}
    packed = found["packed"]
    return [
        f"A training step with a gate target of {packed['target']} (batch {packed['batch']}, including the gate and "
        f"its gradient) takes {float(packed['step_p50_ms']):.0f} ms packed,",
        f"{float(found['trimmed']['step_p50_ms']):.0f} ms trimmed, {float(found['masked']['step_p50_ms']):.0f} ms "
        f"masked, and {float(found['plain']['step_p50_ms']):.0f} ms for the plain ViT.",
    ]
