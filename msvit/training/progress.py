"""The progress of a run on the terminal: a bar with loss, images/s and tokens/image, and a line for each epoch."""

import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

# Steps over which the speed is averaged.
_WINDOW = 50


class Progress:
    """A context manager that shows a run, in the main process only.

    Args:
        epochs: number of epochs of the run.
        steps_per_epoch: number of steps in an epoch.
        visible: whether this process shows the run.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, visible: bool) -> None:
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.console = Console(quiet=not visible)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (visible and self.console.is_terminal),
        )
        self._task = self._bar.add_task("", total=steps_per_epoch, text="")
        self._recent: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._images, self._start, self._stop = 0, 0.0, 0.0

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def images_per_s(self) -> float:
        """Training images per second in this epoch so far."""
        return self._images / max(self._stop - self._start, 1e-9)

    def data_sets(self, train: int, test: int) -> None:
        """Prints the numbers of images, before any is read."""
        self.console.print(f"{train} training images, {test} test images", highlight=False)

    def start_epoch(self, epoch: int, done: int) -> None:
        """Begins epoch number `epoch`, counted from 0, of which `done` steps are already trained."""
        self._images, self._start = 0, time.perf_counter()
        self._recent.clear()
        self._bar.update(self._task, description=f"epoch {epoch + 1}/{self.epochs}", completed=done, text="")

    def step(self, loss: float, tokens_per_image: float, images: int) -> None:
        """Shows a step over `images` images."""
        self._stop = time.perf_counter()
        self._images += images
        self._recent.append((self._stop, images))
        seconds = self._stop - self._recent[0][0]
        speed = sum(n for _, n in list(self._recent)[1:]) / seconds if seconds > 0 else self.images_per_s
        text = f"loss {loss:.3f}  {speed:.0f} images/s  {tokens_per_image:.0f} tokens/image"
        self._bar.update(self._task, advance=1, text=text)

    def testing(self, epoch: int) -> None:
        """Shows that the evaluation after epoch number `epoch`, counted from 1, begins."""
        self._bar.update(self._task, description=f"epoch {epoch}/{self.epochs}: testing")

    def epoch_done(self, row: dict[str, float], score: str, left_out: int) -> None:
        """Prints a line for a row of metrics.csv.

        Args:
            row: values by column.
            score: text for the main score of the task.
            left_out: number of training images that could not be read so far.
        """
        failures = f"  training images left out by this process: {left_out}" if left_out else ""
        self.console.print(
            f"epoch {row['epoch']}/{self.epochs}  loss {row['train_loss']:.4f} "
            f"(task {row['task_loss']:.4f}, gate {row['gate_loss']:.4f})  test loss {row['test_loss']:.4f}  "
            f"{score}  {row['tokens_per_image']:.1f} tokens/image  {row['images_per_s']:.0f} images/s"
            f"{failures}",
            highlight=False,
            soft_wrap=True,
        )
