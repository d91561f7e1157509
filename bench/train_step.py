"""Time and peak memory of a training step: masked, trimmed and packed mixed-scale tokens, and the plain ViT.

    python bench/train_step.py --target 0.1

A step is forward pass, cross-entropy and loss on the gate, backward pass into backbone and gate, and optimizer. The
gate is the learned one, set so that it makes a share of `--target` of the regions fine, drawn anew at every step, with
the threshold policy, as in training; the plain ViT sees all fine tokens. On a GPU the models run under bf16 autocast.
Methods take turns. Peak memory is what a step needs at most above the weights and the state of the optimizer, on a CPU
by the resident size of the process.
"""

import argparse
import ctypes
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import msvit
import msvit.losses
from msvit.policies import Selection, Threshold
from msvit_kernels import testing

MODES = ("masked", "trimmed", "packed")
METHODS = ("plain", *MODES)
NUM_CLASSES = 1000


class RecordingPolicy:
    """A policy that remembers its last mask, so that tokens can be counted without waiting in the step."""

    def __init__(self) -> None:
        self.policy = Threshold(0.5)
        self.fine_mask: Tensor | None = None

    def __call__(self, logits: Tensor, scale_factor: int) -> Selection:
        selection = self.policy(logits, scale_factor)
        self.fine_mask = selection.fine_mask
        return selection

    def check(self, num_regions: int, scale_factor: int) -> None:
        self.policy.check(num_regions, scale_factor)


@dataclass
class Trainer:
    """One model with all that a step needs.

    Attributes:
        name: "plain" or a token mode. model, optimizer: as named. images, labels: of every step.
        gate_loss: of the gate's logits [batch, regions]; None for the plain model.
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: Tensor
    labels: Tensor
    gate_loss: Callable[[Tensor], Tensor] | None

    def losses(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """The cross-entropy, then the loss on the gate where there is one."""
        with torch.autocast("cuda", torch.bfloat16) if images.device.type == "cuda" else nullcontext():
            if self.gate_loss is None:
                return [F.cross_entropy(self.model(images), labels)]
            gate_logits = self.model.gate(images)
            logits = self.model(images, gate_logits=gate_logits)
            return [F.cross_entropy(logits, labels), self.gate_loss(gate_logits.flatten(1))]

    def step(self) -> Tensor:
        """One training step; its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.stack(self.losses(self.images, self.labels)).sum()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def task_reaches_gate(self) -> bool:
        """Whether the cross-entropy of two images alone has a gradient in the gate."""
        self.optimizer.zero_grad(set_to_none=True)
        self.losses(self.images[:2], self.labels[:2])[0].backward()
        gradient = self.model.gate.fc4.weight.grad
        return gradient is not None and float(gradient.abs().sum()) > 0

    def tokens(self) -> float:
        """Patch tokens per image of the last step."""
        if self.gate_loss is None:
            return float(self.model.patch_embed.num_patches)
        fine = self.model.policy.fine_mask.float().mean().item()
        return self.model.scales.mean_patches(fine)


def make_trainers(model_name: str, batch: int, target: float, optimizer: str, device: torch.device) -> list[Trainer]:
    """One trainer for each method, all with the same weights."""
    torch.manual_seed(0)
    mixed = msvit.create_model(model_name, num_classes=NUM_CLASSES)
    with torch.no_grad():  # noise makes P(fine) the sigmoid of the bias
        mixed.gate.fc4.weight.mul_(0.01)
        mixed.gate.fc4.bias.fill_(math.log(target) - math.log1p(-target))
    images = torch.randn(batch, 3, *mixed.image_size).to(device)
    labels = torch.randint(NUM_CLASSES, (batch,)).to(device)
    trainers = []
    for name in METHODS:
        model = _plain(mixed) if name == "plain" else msvit.create_model(model_name, num_classes=NUM_CLASSES)
        model.load_state_dict(mixed.state_dict(), strict=name != "plain")
        gate_loss = None
        if name != "plain":
            model.token_mode, model.policy = name, RecordingPolicy()
            gate_loss = msvit.losses.GeneralizedBatchShapingLoss(target, mixed.coarse_grid_size).to(device)
        model.to(device).train()
        weights = [*model.parameters(), *(gate_loss.parameters() if gate_loss else [])]
        # So small a rate that the share of fine regions stays what it is.
        if optimizer == "sgd":
            chosen: torch.optim.Optimizer = torch.optim.SGD(weights, lr=1e-6, momentum=0.9)
        else:
            chosen = torch.optim.AdamW(weights, lr=1e-8)
        trainers.append(Trainer(name, model, chosen, images, labels, gate_loss))
    return trainers


def _plain(mixed: msvit.MixedScaleVisionTransformer) -> VisionTransformer:
    return VisionTransformer(
        img_size=mixed.image_size,
        patch_size=mixed.patch_size,
        embed_dim=mixed.embed_dim,
        depth=len(mixed.blocks),
        num_heads=mixed.num_heads,
        num_classes=NUM_CLASSES,
    )


def check(trainers: list[Trainer]) -> None:
    """Refuses where the token modes disagree on the logits of one mask, or the task does not train the gate.

    Raises:
        common.RefusalError: with the name of the mode.
    """
    models = {trainer.name: trainer.model for trainer in trainers if trainer.name in MODES}
    images = trainers[0].images[:2]
    height, width = models["masked"].coarse_grid_size
    mask = (torch.arange(len(images) * height * width, device=images.device) % 3 == 0).view(-1, height, width)
    with torch.no_grad():
        logits = {name: model.eval()(images, fine_mask=mask) for name, model in models.items()}
        masked = models["masked"].double()
        oracle = masked(images.double(), fine_mask=mask)
        masked.float()
    for name in ("trimmed", "packed"):
        try:
            testing.assert_accurate(f"{name} logits", logits[name], logits["masked"], oracle)
        except AssertionError as error:
            raise common.RefusalError(f"{name} differs from masked, so it is not timed: {error}") from error
    for trainer in trainers:
        trainer.model.train()
        if trainer.name in MODES and not trainer.task_reaches_gate():
            raise common.RefusalError(f"{trainer.name}: the gate gets no gradient of the task, so it is not timed")
        trainer.step()  # the first one makes the state of the optimizer, which does not count


# ---- memory


def peak_megabytes(call: Callable[[], Any], device: torch.device) -> float | None:
    """Memory that a call takes at most above what is held before it; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier steps freed shall not hide what this one needs
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at the present size
        before = _status("VmRSS")
        call()
        return (_status("VmHWM") - before) / 2**10
    except (OSError, AttributeError, KeyError):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int({line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}[name])


# ---- results


def measure(trainers: list[Trainer], seconds: float, device: torch.device) -> list[dict[str, Any]]:
    """Rows of all methods."""
    memory = {}
    for trainer in trainers:
        trainer.optimizer.zero_grad(set_to_none=True)
        memory[trainer.name] = peak_megabytes(trainer.step, device)
    samples = common.interleave({trainer.name: trainer.step for trainer in trainers}, device, seconds)
    times = {name: common.quantiles(values) for name, values in samples.items()}
    facts = common.facts(device)
    rows = []
    for trainer in trainers:
        name, batch = trainer.name, len(trainer.images)
        time = times[name]
        row: dict[str, Any] = {"bench": "train_step", "method": name, "batch": batch, "tokens": trainer.tokens()}
        row |= {"samples": len(samples[name])} | {f"step_{q}_ms": value * 1e3 for q, value in time.items()}
        row |= {"images_per_s": batch / time["p50"], "peak_mb": memory[name]}
        for other in ("masked", "plain"):
            row[f"times_{other}"] = times[other]["p50"] / time["p50"]
        rows.append(row | facts)
    return rows


def print_table(rows: list[dict[str, Any]], console: Console) -> None:
    """The rows for people."""
    first = rows[0]
    console.print(
        f"\nTraining step of {first['model']} on {first['machine']} ({first['threads']} threads, {first['dtype']}), "
        f"batch {first['batch']}, target {first['target']}, {first['optimizer']}; torch {first['torch']}"
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("method", no_wrap=True)
    for head in ("tokens", "ms per step", "p20-p80", "images/s", "× masked", "× plain", "peak MB"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        low, middle, high = (row[f"step_p{q}_ms"] for q in common.QUANTILES)
        cells = [f"{row['tokens']:.1f}", f"{middle:.1f}", f"{low:.1f}-{high:.1f}", f"{row['images_per_s']:.1f}"]
        cells += [f"{row['times_masked']:.2f}", f"{row['times_plain']:.2f}"]
        table.add_row(row["method"], *cells, "?" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}")
    console.print(table)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="msvit_small_patch16_32_224", help="default: %(default)s")
    parser.add_argument("--batch", type=int, help="images of a step (default: 256 on a GPU, 8 on a CPU)")
    parser.add_argument("--target", type=float, default=0.1, help="share of fine regions (default: %(default)s)")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="default: %(default)s")
    parser.add_argument("--device", help="cpu or cuda; found by itself where not given")
    parser.add_argument("--seconds", type=float, default=60, help="of measuring (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rounds: a smoke test")
    parser.add_argument("--output", type=Path, help="folder of the CSV; bench/results/<device> unless quick")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.model, arguments.batch, arguments.seconds = "msvit_tiny_patch16_32_64", 2, 0.1
    return arguments


def run(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Everything after the command line is read.

    Raises:
        ValueError: an argument that cannot be used.
        common.RefusalError: the token modes disagree, or the task does not train the gate.
    """
    device = common.find_device(arguments.device)
    batch = (256 if device.type == "cuda" else 8) if arguments.batch is None else arguments.batch
    if batch < 2:
        raise ValueError(f"--batch: expected 2 or more, got {batch}")
    if not 0 < arguments.target < 1:
        raise ValueError(f"--target: expected a share inside (0, 1), got {arguments.target}")
    trainers = make_trainers(arguments.model, batch, arguments.target, arguments.optimizer, device)
    check(trainers)
    rows = measure(trainers, arguments.seconds, device)
    dtype = "bf16 autocast" if device.type == "cuda" else "fp32"
    fields = {"model": arguments.model, "target": arguments.target, "optimizer": arguments.optimizer, "dtype": dtype}
    rows = [{"bench": row.pop("bench")} | fields | row for row in rows]
    print_table(rows, console)
    output = arguments.output or (None if arguments.quick else common.results_dir(device))
    if output is not None:
        common.write_csv(output / "train_step.csv", rows)
        console.print(f"wrote {output / 'train_step.csv'}")
    return rows


def main(argv: list[str] | None = None) -> None:
    """Runs, and turns what is wrong into one line."""
    arguments = parse_arguments(argv)
    with common.errors_in_one_line():
        run(arguments, common.make_console())


if __name__ == "__main__":
    main()
