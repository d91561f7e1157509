"""Rounds in which every method takes its turn, until the time is over."""

import math
import time
from collections.abc import Callable, Iterable

from rich.progress import Progress

from bench.vit.zoo import Method, Zoo

MAX_SAMPLES = 50  # of a method
MAX_JOIN_SAMPLES, JOIN_SECONDS = 5, 0.5  # of a method that joins later
WRITE_SECONDS = 5  # between two versions of the CSV
Key = tuple[str, int, int]  # method, tokens asked for, batch
Sample = tuple[float | None, float]  # seconds per image of the blocks, if they are known, and of the call


class Sweep:
    """All methods at one batch size, timed in rounds.

    Args:
        rows: lists of methods, one for each number of tokens.
        batch: images of a call.
        zoo: zoo that made the methods.

    Attributes:
        samples: (seconds of the blocks or None, seconds of the call) per image, by method and tokens asked for.
        rounds: finished rounds.
        seconds: seconds of the last round.
    """

    def __init__(self, rows: list[list[Method]], batch: int, zoo: Zoo) -> None:
        self.batch, self.zoo = batch, zoo
        self.others = [method for row in rows for method in row if method.name != "masked"]
        masked = [method for row in rows for method in row if method.name == "masked"]
        self.masked = [[m for m in masked if m.image_size == size] for size in sorted({m.image_size for m in masked})]
        self.samples: dict[Key, list[Sample]] = {}
        self.rounds, self.seconds = 0, 0.0

    @property
    def calls_per_round(self) -> int:
        return len(self.others) + len(self.masked)

    @property
    def num_methods(self) -> int:
        return len(self.others) + sum(map(len, self.masked))

    def key(self, method: Method) -> Key:
        """Key of a method's samples."""
        return method.name, method.wanted, self.batch

    def join(self, methods: list[Method]) -> None:
        """Adds methods and takes their first samples, in case there is no time for another round."""
        for method in methods:
            self._time(method, [])
            end = time.perf_counter() + JOIN_SECONDS
            for _ in range(MAX_JOIN_SAMPLES):
                self._time(method, [method])
                if time.perf_counter() > end:
                    break
        self.others += methods

    def run(self, advance: Callable[[], None], keep: bool = True, deadline: float = math.inf) -> None:
        """Runs one round, which ends early after the deadline; if `keep` is False, it is only a warm-up."""
        start = time.perf_counter()
        turns = [(group[self.rounds % len(group)], group) for group in self.masked]
        turns += [(method, [method]) for method in self.others]
        for method, credited in turns:
            if time.perf_counter() > deadline:
                break
            self._time(method, credited if keep else [])
            advance()
        self.rounds += keep
        self.seconds = time.perf_counter() - start

    def _time(self, method: Method, credited: list[Method]) -> None:
        images = self.zoo.images(method.image_size)
        if self.batch == 1:  # the images in turn, the same one for every method of a round
            index = self.rounds % len(images)
            images = images[index : index + 1]
        blocks, whole = self.zoo.stopwatch.time(method.call, images[: self.batch])
        for credit in credited:
            self.samples.setdefault(self.key(credit), []).append((blocks and blocks / self.batch, whole / self.batch))


def first_rounds(sweeps: list[Sweep], deadline: float, progress: Progress) -> None:
    """Runs one round of every batch size; only that of the smallest one is completed after the deadline."""
    task = progress.add_task("first round", total=sum(sweep.calls_per_round for sweep in sweeps))
    small = min(sweeps, key=lambda sweep: sweep.batch)
    small.run(lambda: None, keep=False)
    for sweep in sweeps:
        sweep.run(lambda: progress.advance(task), deadline=math.inf if sweep is small else deadline)
    progress.remove_task(task)


def more_rounds(sweeps: list[Sweep], deadline: float, progress: Progress, write: Callable[[], None]) -> None:
    """Runs rounds of all batch sizes evenly, until the next one would end after the deadline."""
    start = written = time.perf_counter()
    task = progress.add_task("measuring", total=max(deadline - start, 1e-3))
    while fitting := [s for s in sweeps if s.rounds < MAX_SAMPLES and time.perf_counter() + s.seconds < deadline]:
        sweep = min(fitting, key=lambda s: (s.rounds, -s.batch))
        sweep.run(lambda: progress.update(task, completed=time.perf_counter() - start))
        if time.perf_counter() > written + WRITE_SECONDS:
            write()
            written = time.perf_counter()


def seconds_of_rounds(sweeps: Iterable[Sweep], deadline: float) -> float:
    """Seconds reserved for rounds before compilation: five rounds, but at most half of the time."""
    return min((deadline - time.perf_counter()) / 2, 5 + 5 * sum(sweep.seconds for sweep in sweeps))
