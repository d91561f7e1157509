"""What a run writes down after every epoch: metrics.csv, priors.csv and, if asked for, TensorBoard files."""

from pathlib import Path
from typing import Any

from msvit.training.metrics import COLUMNS, METRICS_FILE, PRIORS_FILE, read_rows, write_rows


class Journal:
    """The log files of a run.

    Args:
        folder: of the run.
        tensorboard: write TensorBoard files, too.

    Raises:
        ValueError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self.folder = folder
        self._writer = _summary_writer(folder / "tensorboard") if tensorboard else None

    def write(self, row: dict[str, float], priors: list[float] | None) -> None:
        """Adds an epoch."""
        path = self.folder / METRICS_FILE
        write_rows(path, COLUMNS, [*read_rows(path), row])
        self.write_priors(int(row["epoch"]), priors)
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, int(row["step"]))
            self._writer.flush()

    def write_priors(self, epoch: int, priors: list[float] | None) -> None:
        """Adds the priors after an epoch, 0 for those at the start."""
        if priors is None:
            return
        path = self.folder / PRIORS_FILE
        row = {"epoch": epoch} | {f"theta_{i}": theta for i, theta in enumerate(priors)}
        write_rows(path, list(row), [*read_rows(path), row])

    def forget_after(self, step: int) -> None:
        """Removes the epochs after a step: they are going to be trained again."""
        path = self.folder / METRICS_FILE
        rows = [row for row in read_rows(path) if row["step"] <= step]
        if path.exists():
            write_rows(path, COLUMNS, rows)
        path = self.folder / PRIORS_FILE
        if path.exists():
            # At step 0 the priors are written anew.
            kept = [row for row in read_rows(path) if step and row["epoch"] <= len(rows)]
            write_rows(path, list(kept[0]) if kept else ["epoch"], kept)


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard: expected it to be installed; `pip install tensorboard`") from error
    return SummaryWriter(str(folder))
