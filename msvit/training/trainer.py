"""The training loop: after each epoch it evaluates the model and writes a row of metrics and a checkpoint."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import msvit
from msvit.gates.fixed import reset_noise
from msvit.training.batches import Batch, images_per_part, in_memory, seed_of, training_batches
from msvit.training.build import set_training
from msvit.training.checkpoints import MODEL_FILE, Checkpoint, load_loss, unwritten, write_checkpoint
from msvit.training.config import Config
from msvit.training.datasets import is_streamed
from msvit.training.finite import FiniteChecks, is_gate_broken
from msvit.training.journal import Journal
from msvit.training.metrics import columns_of
from msvit.training.objective import Losses, Objective, make_gate_loss
from msvit.training.optim import make_parts
from msvit.training.processes import share_of
from msvit.training.progress import Progress
from msvit.training.runs import Run, load_run
from msvit.training.tasks import task_of
from msvit_kernels.leftovers import remove_leftovers

_SUMS = ("train_loss", "task_loss", "gate_loss", "train_tokens_per_image")


class Trainer:
    """The state of a run in memory, and its loop.

    Args:
        config: values of the run.
        folder: folder of the run.
        model: model of the run, on the CPU.
        train_set: training images, result of `Task.dataset`.
        derived: the other entries of config.json, see `msvit.training.runs`.
        accelerator: devices and processes of the run.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        model: Any,
        train_set: Any,
        derived: dict[str, Any],
        accelerator: Accelerator,
    ) -> None:
        self.config, self.folder, self.accelerator, self.model = config, folder, accelerator, model
        self.task = task_of(config)
        backbone = self.task.backbone(model)
        self.image_size = backbone.image_size
        self.share = share_of(accelerator)
        images_per_part(config, self.share)  # a batch that cannot be divided is refused before the folder is made
        self.train_set = in_memory(train_set)
        self.test_set = self.task.dataset(False, self.image_size, derived.get("classes"))
        self.steps_per_epoch: int = derived["steps_per_epoch"]
        self.gate_loss = make_gate_loss(config, backbone.coarse_grid_size)
        self.parts = make_parts(model, self.gate_loss, config, self.steps_per_epoch)
        self.objective = Objective(model, self.gate_loss, config)
        self.wrapped: nn.Module = accelerator.prepare(self.objective)
        self.finite = FiniteChecks(folder, self.objective, self.steps_per_epoch)
        columns = columns_of(self.task.test_columns)
        self.journal = Journal(folder, columns, config.tensorboard and accelerator.is_main_process)
        self.step = 0
        self.seconds = 0.0
        self.sums = dict.fromkeys(_SUMS, 0.0)
        self.left_out: set[str] = set()

    def train(self) -> Run:
        """Trains from the present step to the end of the run, and returns the finished run."""
        main = self.accelerator.is_main_process
        with Progress(self.config.epochs, self.steps_per_epoch, main) as progress:
            progress.data_sets(len(self.train_set), len(self.test_set))
            if main and self.step == 0:
                self._log(None)
            while self.step < self.config.epochs * self.steps_per_epoch:
                self._train_epoch(progress)
                row, classes = self._finish_epoch(progress)
                if main:
                    self._log(row, classes)
                    progress.epoch_done(row, self.task.epoch_text(row), len(self.left_out))
                self._save()
        return load_run(self.folder)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Restores the state of a checkpoint, None for the initial state, and removes later rows of the log files."""
        if checkpoint is not None:
            msvit.load_checkpoint(self.model, checkpoint.folder / MODEL_FILE)
            state = checkpoint.trainer_state()
            if self.gate_loss is not None:
                load_loss(self.gate_loss, checkpoint)
            for part, saved in zip(self.parts, state["optimizers"], strict=True):
                part.optimizer.load_state_dict(saved)
            self.step, self.seconds, self.sums = state["step"], state["seconds"], state["sums"]
            self._warn_of_processes(checkpoint, state.get("processes"))
        if self.accelerator.is_main_process:
            remove_leftovers(self.folder)
            remove_leftovers(self.folder / "checkpoints")
            self.journal.forget_after(self.step)

    def _warn_of_processes(self, checkpoint: Checkpoint, processes: int | None) -> None:
        """Warns of numbers that will differ from those of an uninterrupted run; older versions stored no number."""
        present = self.share.world_size
        if not self.accelerator.is_main_process or processes == present:
            return
        if processes is not None:
            warnings.warn(
                f"{checkpoint.folder}: {processes} processes wrote it, and the run continues with {present}; the noise "
                "of the gate and of stochastic depth will differ from that of an uninterrupted run, and a streamed "
                "data set may yield images of this epoch again",
                stacklevel=3,
            )
        elif self.step % self.steps_per_epoch:
            warnings.warn(
                f"{checkpoint.folder}: an older version wrote it, which multiplied the losses of the present epoch by "
                "its number of processes; if that was not 1, the training losses of this epoch will be too high",
                stacklevel=3,
            )

    def _train_epoch(self, progress: Progress) -> None:
        epoch, done = divmod(self.step, self.steps_per_epoch)
        set_training(self.model, self.config)
        if is_streamed(self.train_set):  # a reader may remember its position
            self.train_set = self.task.dataset(True, self.image_size)
        batches = training_batches(self.train_set, self.config, epoch, done, self.share)
        progress.start_epoch(epoch, done)
        start = time.perf_counter()
        for _ in range(done, self.steps_per_epoch):
            values = self._train_step(batches)
            self.seconds, start = self.seconds + time.perf_counter() - start, time.perf_counter()
            progress.step(values["train_loss"], values["train_tokens_per_image"], self.config.batch_size)
            every = self.config.checkpoint_steps
            if every and self.step % every == 0 and self.step % self.steps_per_epoch:
                self.finite.weights(self.step)
                self._save()
                start = time.perf_counter()

    def _train_step(self, batches: Any) -> dict[str, float]:
        """One optimizer step over `accumulate` batches."""
        for part in self.parts:
            part.set_step(self.step)
            part.optimizer.zero_grad(set_to_none=True)
        delayed = self.step < self.config.gate_delay_epochs * self.steps_per_epoch
        self.objective.gate_weight = 0.0 if delayed else self.config.gate_weight
        self.model.gate.train(self.config.trains_gate and not delayed)  # without noise until it learns
        values = dict.fromkeys(_SUMS, 0.0)
        for number in range(self.config.accumulate):
            batch: Batch = next(batches)
            self.left_out.update(batch.left_out)
            self.task.check_labels(batch.labels, self.model.num_classes)
            seed = seed_of(self.config.seed, self.step, number, self.share.rank, 2)
            torch.manual_seed(seed)
            reset_noise(self.model.gate, seed)
            last = number == self.config.accumulate - 1
            with _synchronised(self.accelerator, self.wrapped, last):
                losses = self._losses(batch)
                found = torch.stack([loss.detach().float() for loss in losses]).tolist()
                self.finite.losses(dict(zip(_SUMS, found, strict=True)), self.step, batch)
                self.accelerator.backward(losses.total / self.config.accumulate)
            for name, value in zip(_SUMS, found, strict=True):
                values[name] += value / self.config.accumulate
        norm = float(self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.config.clip_grad or math.inf))
        self.finite.gradient(norm, self.step, batch)
        for part in self.parts:
            part.optimizer.step()
        self.step += 1
        for name, value in values.items():
            self.sums[name] += value
        return values

    def _losses(self, batch: Batch) -> Losses:
        try:
            losses: Losses = self.wrapped(self._to_device(batch.images), self._to_device(batch.labels))
        except ValueError as error:  # of an operator, about an argument that NaN made invalid
            if is_gate_broken(self.model.gate, batch, self.accelerator.device):
                raise self.finite.error("gate", "its logits are NaN or infinite", self.step, batch) from error
            raise
        return losses

    def _finish_epoch(self, progress: Progress) -> tuple[dict[str, float], Sequence[Mapping[str, Any]]]:
        """Tests the model, and returns the rows of the epoch in metrics.csv and classes.csv."""
        epoch = self.step // self.steps_per_epoch
        progress.testing(epoch)
        self.finite.weights(self.step)
        found = self.task.score(self.model, self.test_set, self.accelerator)
        self.finite.test_loss(found.columns["test_loss"], self.step)
        sums = self._total_sums()
        row: dict[str, float] = {name: value / self.steps_per_epoch for name, value in sums.items()}
        row |= found.columns
        row |= {"epoch": epoch, "step": self.step, "images_per_s": progress.images_per_s, "seconds": self.seconds}
        self.sums = dict.fromkeys(_SUMS, 0.0)
        return row, found.classes

    def _log(self, row: dict[str, float] | None, classes: Sequence[Mapping[str, Any]] = ()) -> None:
        """Writes the rows of an epoch and its priors; None for the priors before the first step."""
        try:
            if row is None:
                self.journal.write_priors(0, self._priors())
            else:
                self.journal.write(row, self._priors())
                self.journal.write_classes(classes)
        except OSError as error:
            raise unwritten(self.folder, f"the log of {self.folder}", error) from error

    def _total_sums(self) -> dict[str, float]:
        """The sums of the epoch, averaged over processes."""
        if self.share.world_size == 1:
            return dict(self.sums)
        local = torch.tensor(list(self.sums.values()), dtype=torch.float32, device=self.accelerator.device)
        total: Tensor = self.accelerator.reduce(local, "mean")
        return dict(zip(self.sums, total.tolist(), strict=True))

    def _save(self) -> None:
        # All processes continue with the means, as they do after a resume, whatever their number is then.
        self.sums = self._total_sums()
        if self.accelerator.is_main_process:
            trainer = {
                "step": self.step,
                "seconds": self.seconds,
                "processes": self.share.world_size,
                "sums": self.sums,
                "optimizers": [part.optimizer.state_dict() for part in self.parts],
            }
            write_checkpoint(self.folder, self.step, self.model, self.gate_loss, trainer)
        self.accelerator.wait_for_everyone()

    def _priors(self) -> list[float] | None:
        theta = getattr(self.gate_loss, "theta", None)
        return None if theta is None else theta.detach().flatten().tolist()

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.accelerator.device, non_blocking=True)


def _synchronised(accelerator: Accelerator, module: nn.Module, last: bool) -> Any:
    """A context that averages gradients over processes only after the last part of a batch."""
    return nullcontext() if last else accelerator.no_sync(module)
