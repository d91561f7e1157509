"""The log files that a run extends after every epoch: metrics.csv, priors.csv and, optionally, TensorBoard files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msvit.extras import require_extra
from msvit.training.metrics import CLASSES_FILE, METRICS_FILE, PRIORS_FILE, read_metrics, read_numbers
from msvit_kernels.files import write_rows


class Journal:
    """The log files of a run.

    Args:
        folder: folder of the run.
        columns: columns of metrics.csv.
        tensorboard: whether to write TensorBoard files too.

    Raises:
        MissingExtraError: `tensorboard` is True and TensorBoard is not installed.
    """

    def __init__(self, folder: Path, columns: Sequence[str], tensorboard: bool) -> None:
        self.folder, self.columns = folder, columns
        self._writer = _summary_writer(folder / "tensorboard") if tensorboard else None

    def write(self, row: dict[str, float], priors: list[float] | None) -> None:
        """Adds the row of an epoch, and the priors after it."""
        path = self.folder / METRICS_FILE
        write_rows(path, self.columns, [*read_metrics(self.folder, self.columns), row])
        self.write_priors(int(row["epoch"]), priors)
        if self._writer is not None:
            for name, value in row.items():
                self._writer.add_scalar(name, value, int(row["step"]))
            self._writer.flush()

    def write_priors(self, epoch: int, priors: list[float] | None) -> None:
        """Adds the priors after epoch number `epoch`; 0 is the start of the run. None adds nothing."""
        if priors is None:
            return
        path = self.folder / PRIORS_FILE
        row = {"epoch": epoch} | {f"theta_{i}": theta for i, theta in enumerate(priors)}
        write_rows(path, list(row), [*read_numbers(path), row])

    def write_classes(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the scores of each class after an epoch; no row, no file."""
        if rows:
            write_rows(self.folder / CLASSES_FILE, list(rows[0]), rows)

    def forget_after(self, step: int) -> None:
        """Removes the rows of epochs after a step, which will be trained again."""
        path = self.folder / METRICS_FILE
        rows = [row for row in read_metrics(self.folder, self.columns) if row["step"] <= step]
        if path.exists():
            write_rows(path, self.columns, rows)
        path = self.folder / PRIORS_FILE
        if path.exists():
            # From step 0, training writes the initial priors again.
            kept = [row for row in read_numbers(path) if step and row["epoch"] <= len(rows)]
            write_rows(path, list(kept[0]) if kept else ["epoch"], kept)


def _summary_writer(folder: Path) -> Any:
    require_extra("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))
