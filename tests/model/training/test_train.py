"""The trained parameters and the files of a run."""

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

import msvit
from msvit.evaluation.outcomes import check_labels
from msvit.gates import MLPGate, save_gate
from msvit.losses import GeneralizedBatchShapingLoss
from msvit.policies import Budget
from msvit.training import Run, load_run, make_config, resume_run, start_run, trainer
from msvit.training.batches import Share, in_memory
from msvit.training.build import build_model
from msvit.training.datasets import InMemory, make_dataset
from msvit.training.metrics import columns_of
from msvit.training.objective import Objective, make_gate_loss
from msvit.training.optim import make_parts
from msvit.training.tasks.classification import Classification
from msvit.training.trainer import Trainer
from tests.model.training.run_helpers import image_folder, interrupted, metrics_of, small_config, weights_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return start_run(small_config(gate_lr_scale=100.0), tmp_path_factory.mktemp("runs") / "digits")


def test_folder_of_a_run(run: Run) -> None:
    stored = json.loads((run.folder / "config.json").read_text())
    assert stored["config"] == small_config(gate_lr_scale=100.0).to_dict()
    assert (stored["num_classes"], stored["image_size"], stored["steps_per_epoch"]) == (10, [32, 32], 4)
    assert (run.folder / "metrics.csv").read_text().splitlines()[0].split(",") == [
        *columns_of(Classification.test_columns)
    ]
    assert [(row["epoch"], row["step"]) for row in run.metrics] == [(1, 4), (2, 8)]
    for row in run.metrics:
        assert row["train_loss"] == pytest.approx(row["task_loss"] + 4 * row["gate_loss"])
        assert row["tokens_per_image"] == pytest.approx(4 + 12 * row["fine_share"])
        assert 0 <= row["top1"] <= row["top5"] <= 1
        assert row["images_per_s"] > 0
        tokens = 4 + 12 * row["fine_share"]
        low, high = (msvit.macs(run.model(), round(n)) + msvit.gate_macs(run.model()) for n in (tokens - 1, tokens + 1))
        assert low < row["gmacs"] * 1e9 < high


def test_reading_a_run(run: Run) -> None:
    found = load_run(run.folder)
    model, images = found.model(), found.test_dataset().images
    assert not model.training
    labels = found.test_dataset().labels
    top1 = (model(images).argmax(1) == labels).float().mean().item()
    assert top1 == pytest.approx(found.metrics[-1]["top1"])
    assert (model.gate(images) > 0).float().mean().item() == pytest.approx(found.metrics[-1]["fine_share"])
    assert found.priors is not None
    assert found.priors.shape == (3, 2, 2)
    theta = GeneralizedBatchShapingLoss(0.25, (2, 2))
    theta.load_state_dict(found.checkpoint().loss_state())
    assert torch.allclose(found.priors[-1].flatten(), theta.theta.detach())
    assert torch.allclose(found.priors[0], torch.tensor(0.25))


def test_gate_and_task_are_learned(tmp_path: Path) -> None:
    """On images that it has seen often: the gate comes near the target, the classes become likelier."""
    config = small_config(gate_lr_scale=5.0, lr=2e-3, epochs=16)
    first, *_, last = start_run(config, tmp_path / "run").metrics
    assert last["gate_loss"] < 0.4 * first["gate_loss"]
    assert last["task_loss"] < first["task_loss"] - 0.01


def test_same_seed_same_run(run: Run, tmp_path: Path) -> None:
    again = start_run(run.config, tmp_path / "again")
    assert metrics_of(again) == metrics_of(run)
    other = start_run(run.config.replace(seed=1), tmp_path / "other")
    assert metrics_of(other) != metrics_of(run)
    assert torch.equal(other.test_dataset().images, run.test_dataset().images)


def changed(run: Run, before: dict[str, Tensor]) -> set[str]:
    after = run.model().state_dict()
    return {
        "gate" if name.startswith("gate.") else "backbone" for name in before if not before[name].equal(after[name])
    }


@pytest.mark.parametrize(
    ("freeze", "expected"), [("none", {"gate", "backbone"}), ("gate", {"backbone"}), ("backbone", {"gate"})]
)
def test_what_is_frozen_stays(run: Run, tmp_path: Path, freeze: str, expected: set[str]) -> None:
    config = small_config(freeze=freeze, checkpoint=str(run.folder), epochs=1, gate_lr_scale=100.0)
    assert changed(start_run(config, tmp_path / "run"), run.model().state_dict()) == expected


def test_frozen_gate_decides_without_noise(run: Run, tmp_path: Path) -> None:
    config = small_config(freeze="gate", checkpoint=str(run.folder), epochs=1)
    found = start_run(config, tmp_path / "run")
    images = found.train_dataset().images
    share = (found.model().gate(images) > 0).float().mean().item()
    assert found.metrics[0]["train_tokens_per_image"] == pytest.approx(4 + 12 * share)
    assert found.metrics[0]["gate_loss"] == 0


@pytest.mark.parametrize(
    ("gate", "target", "share", "tolerance"),
    [
        ("radial", 0.25, 0.25, 1e-6),
        ("radial", 0.8, 0.75, 1e-6),
        ("entropy", 0.25, 0.25, 0.05),
        ("random", 0.25, 0.25, 0.05),
        ("fine", 0.25, 1, 0),
        ("coarse", 0.25, 0, 0),
    ],
)
def test_gates_without_learning_meet_the_target(
    tmp_path: Path, gate: str, target: float, share: float, tolerance: float
) -> None:
    config = small_config(gate=gate, gate_target=target, image_size=64, epochs=1, batch_size=64)
    found = start_run(config, tmp_path / "run")
    row = found.metrics[0]
    assert (row["train_tokens_per_image"] - 16) / 48 == pytest.approx(share, abs=tolerance)
    assert row["gate_loss"] == 0
    tolerance = {"entropy": 0.15, "random": 0.08}.get(gate, tolerance)  # on other images; by another draw
    assert row["fine_share"] == pytest.approx(share, abs=tolerance)
    assert (found.derived["gate_setting"] is None) == (gate in ("fine", "coarse"))


@pytest.mark.parametrize("per", ["batch", "image"])
def test_budget(tmp_path: Path, per: str) -> None:
    found = start_run(small_config(tokens_per_image=7.0, budget_per=per, epochs=1), tmp_path / "run")
    assert found.model().policy == Budget(7.0, per)
    assert found.metrics[0]["train_tokens_per_image"] == pytest.approx(7)
    assert found.metrics[0]["tokens_per_image"] == pytest.approx(7)


@pytest.mark.parametrize("mode", ["trimmed", "masked"])
def test_token_modes_evaluate_alike(run: Run, mode: str) -> None:
    model, images = run.model(), run.test_dataset().images
    expected = model(images)
    model.token_mode = mode
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=0)


def test_folder_of_images_and_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    data = str(image_folder(tmp_path / "data"))
    config = small_config(data=data, batch_size=4, crops="inception", num_workers=0, tensorboard=True, epochs=1)
    found = start_run(config, tmp_path / "run")
    assert found.derived["num_classes"] == 2
    assert found.metrics[0]["top5"] == 1, "top-5 of two classes"
    assert list((found.folder / "tensorboard").iterdir())


def test_classes_are_those_of_the_training_folder(tmp_path: Path) -> None:
    """Where the test images lack one, and where they have one more; also when a run is read again."""
    data = image_folder(tmp_path / "data")
    shutil.copytree(data / "train" / "dog", data / "train" / "bird")
    config = small_config(data=str(data), batch_size=4, num_workers=0, epochs=1)
    found = start_run(config, tmp_path / "run")
    assert found.derived["classes"] == ["bird", "cat", "dog"]
    assert [label for _, label in found.test_dataset()] == [1] * 4 + [2] * 4
    assert [label for _, label in make_dataset(config, False, (32, 32))] == [1] * 4 + [2] * 4
    shutil.rmtree(data / "train")
    assert [label for _, label in found.test_dataset()] == [1] * 4 + [2] * 4
    shutil.copytree(data / "val", data / "train")
    shutil.copytree(data / "val" / "dog", data / "val" / "wolf")
    with pytest.raises(ValueError, match="split validation: expected only classes of the training images, got wolf"):
        start_run(config, tmp_path / "other")


def test_one_class_is_refused(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    shutil.rmtree(data / "train" / "dog")
    shutil.rmtree(data / "val" / "dog")
    with pytest.raises(ValueError, match="expected two classes or more, got 1"):
        start_run(small_config(data=str(data), batch_size=4), tmp_path / "run")


def test_a_label_without_an_output_is_named() -> None:
    check_labels(torch.tensor([0, 9]), 10)
    for label in (10, -1):
        with pytest.raises(ValueError, match=f"--num-classes: got 10, but an image has the label {label}"):
            check_labels(torch.tensor([0, label]), 10)


def test_gate_warms_up_for_longer() -> None:
    """Both learning rates follow the schedule of the preset; the gate reaches its own at epoch 6 (section C.3)."""
    config = make_config("vit", model="msvit_tiny_patch16_32_224", embed_dim=16, depth=1, num_heads=1)
    model = build_model(config, 10)
    parts = make_parts(model, make_gate_loss(config, (7, 7)), config, steps_per_epoch=100)
    rates = []
    for step in range(2000):
        for part in parts:
            part.set_step(step)
        rates.append([part.optimizer.param_groups[0]["lr"] for part in parts])
    backbone, gate = torch.tensor(rates).T
    assert backbone.argmax() == 50
    assert backbone.max().item() == pytest.approx(0.03, rel=1e-2)
    assert gate.argmax() in (599, 600)
    assert gate[300].item() == pytest.approx(0.015, rel=2e-2)
    assert gate[600:].equal(backbone[600:])
    assert backbone[-1] < 1e-4
    trained = {id(p) for part in parts for group in part.optimizer.param_groups for p in group["params"]}
    assert len(trained) == len(list(model.parameters())) + 1, "and the priors"


def test_a_delayed_gate_stays_as_it_is(tmp_path: Path) -> None:
    """Before the delay ends, the gate has neither steps nor a loss; afterwards it has both."""
    config = small_config(gate_delay_epochs=1.0, gate_lr_scale=10.0)
    with interrupted(after_steps=4):
        start_run(config, tmp_path / "run")
    torch.manual_seed(config.seed)
    initial = build_model(config, 10).gate.state_dict()
    early = load_run(tmp_path / "run")
    assert all(tensor.equal(initial[name]) for name, tensor in early.model().gate.state_dict().items())
    assert early.metrics[0]["train_loss"] == early.metrics[0]["task_loss"]
    late = resume_run(tmp_path / "run")
    assert not any(tensor.equal(initial[name]) for name, tensor in late.model().gate.state_dict().items())
    assert late.metrics[1]["train_loss"] > late.metrics[1]["task_loss"]


def test_only_matrices_decay() -> None:
    config = small_config(weight_decay=0.5)
    model = build_model(config, 10)
    parts = make_parts(model, make_gate_loss(config, (2, 2)), config, 4)
    decay = {id(p): g["weight_decay"] for part in parts for g in part.optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.5 if name.endswith("weight") and parameter.ndim > 1 else 0
        assert decay[id(parameter)] == expected, name


def test_bf16_keeps_the_gate_in_fp32() -> None:
    config = small_config()
    model = build_model(config, 10)
    objective = Objective(model, make_gate_loss(config, (2, 2)), config)
    images, labels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % 10
    expected = objective(images, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective(images, labels)
    assert found.gate.equal(expected.gate)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.task, expected.task, rtol=0.05, atol=0.05)
    found.total.backward()
    assert all(p.grad is not None for name, p in objective.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("streamed", [False, True])
def test_nan_stops_and_names_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool) -> None:
    original = Trainer._train_step

    def step(self: Trainer, batches: Any) -> dict[str, float]:
        if self.step == 5:
            self.model.head.bias.data[0] = torch.nan
        if streamed:
            batches = (type(batch)(batch.images, batch.labels, None) for batch in batches)
        return original(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", step)
    with pytest.raises(FloatingPointError, match=r"not finite at step 5 \(batch 1 of epoch 2") as caught:
        start_run(small_config(), tmp_path / "run")
    assert ("images [" in str(caught.value)) is not streamed
    monkeypatch.undo()
    assert load_run(tmp_path / "run").checkpoint().step == 4
    assert all(tensor.isfinite().all() for tensor in weights_of(load_run(tmp_path / "run")).values())


def _process(rank: int, port: int, folder: Path, config: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    start_run(config, folder / "two")
    resume_run(folder / "one-two")
    torch.distributed.destroy_process_group()


def test_a_last_step_that_ruins_the_weights_is_no_success(tmp_path: Path) -> None:
    values = {"lr": 1e30, "optimizer": "sgd", "warmup_epochs": 0.0, "epochs": 1, "batch_size": 64}
    with pytest.raises(FloatingPointError, match=r"test images is not finite after step 1 .* there is no checkpoint"):
        start_run(small_config(gate="fine", **values), tmp_path / "run")
    assert load_run(tmp_path / "run").metrics == []


def test_divergence_of_the_gate_is_named_before_what_it_breaks(tmp_path: Path) -> None:
    values = {"lr": 1e30, "optimizer": "sgd", "warmup_epochs": 0.0, "gate_warmup_epochs": 0.0}
    with pytest.raises(FloatingPointError, match=r"the gate is not finite at step 1 \(batch 1 of epoch 1, images \["):
        start_run(small_config(**values), tmp_path / "run")


def test_pixels_that_are_not_finite_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def floats(dataset: Any) -> Any:
        images, labels = in_memory(dataset).images.float() / 255, dataset.labels
        images[5, 1, 2, 3] = torch.nan
        return InMemory(images, labels)

    monkeypatch.setattr(trainer, "in_memory", floats)
    message = (
        r"not finite at step \d .*; pixels are not finite: images \[5\] of the training set; there is no checkpoint"
    )
    with pytest.raises(FloatingPointError, match=message) as caught:
        start_run(small_config(epochs=1), tmp_path / "run")
    assert "--lr" not in str(caught.value)


@pytest.mark.parametrize(("last", "kept"), [(3, 2), (8, 7)], ids=["within-an-epoch", "at-its-end"])
def test_weights_that_are_not_finite_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int, kept: int
) -> None:
    """At the end of an epoch, the scores would not show a broken gate: NaN makes a region coarse."""
    original = Trainer._train_step

    def step(self: Trainer, batches: Any) -> dict[str, float]:
        values = original(self, batches)
        if self.step == last:
            self.model.gate.fc4.bias.data[0] = torch.nan
        return values

    monkeypatch.setattr(Trainer, "_train_step", step)
    message = rf"after step {last}: gate.fc4.bias; the newest checkpoint is .*step-0000000{kept}; a new run"
    with pytest.raises(FloatingPointError, match=message):
        start_run(small_config(checkpoint_steps=1), tmp_path / "run")
    found = load_run(tmp_path / "run")
    assert found.checkpoint().step == kept
    assert len(found.metrics) == (last - 1) // 4


def test_a_batch_that_cannot_be_divided_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "share_of", lambda accelerator: Share(0, 3))
    with pytest.raises(ValueError, match=r"--batch-size: expected a multiple of 3 \(3 processes"):
        start_run(small_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_gradient_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Objective.forward

    def forward(self: Objective, *arguments: Any) -> Any:
        losses = original(self, *arguments)
        losses.total.register_hook(lambda grad: grad * torch.nan)
        return losses

    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(FloatingPointError, match=r"the gradient is not finite at step 0 .*: its norm is nan"):
        start_run(small_config(clip_grad=None), tmp_path / "run")


def test_a_gate_file_comes_before_the_gate_of_a_checkpoint(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = build_model(run.config, 10).gate
    save_gate(other, tmp_path / "gate.safetensors")
    values = {"checkpoint": str(run.folder), "gate_file": str(tmp_path / "gate.safetensors")}
    model = build_model(small_config(**values), 10)
    assert all(tensor.equal(other.state_dict()[name]) for name, tensor in model.gate.state_dict().items())
    assert model.head.weight.equal(run.model().head.weight)
    save_gate(MLPGate(16, (2, 2), hidden=64), tmp_path / "gate.safetensors")
    with pytest.raises(ValueError, match="expected a gate with 96 hidden units, got 64"):
        build_model(small_config(**values), 10)


def test_a_frozen_gate_must_have_been_trained(tmp_path: Path) -> None:
    plain = start_run(small_config(gate="fine", epochs=1), tmp_path / "plain")
    with pytest.raises(ValueError, match=r"--freeze gate: expected a trained gate, .* has none"):
        build_model(small_config(freeze="gate", checkpoint=str(plain.folder)), 10)


def test_a_frozen_backbone_learns_a_new_classifier(run: Run) -> None:
    values = {"freeze": "backbone", "checkpoint": str(run.folder)}
    for new_head in (True, False):
        model = build_model(small_config(new_head=new_head, **values), 10)
        trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == ({"gate", "head"} if new_head else {"gate"})


@pytest.mark.parametrize(("classes", "new"), [(10, True), (1000, False)])
def test_a_frozen_backbone_of_timm_learns_a_new_classifier(classes: int, new: bool) -> None:
    config = make_config("vit", model="msvit_tiny_patch16_32_224", pretrained=True, freeze="backbone")
    assert build_model(config, classes, weights=False).head.weight.requires_grad is new


@pytest.mark.parametrize("gate", ["learned", "entropy", "radial"])
def test_gates_see_uint8_and_normalised_images_alike(gate: str) -> None:
    config = small_config(gate=gate, pixel_mean=0.65, pixel_std=0.25)
    model = build_model(config, 10, gate_setting=1.0).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model.gate(images), model.gate((images / 255 - 0.65) / 0.25), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("mode", "accumulate"), [("masked", 1), ("trimmed", 1), ("packed", 1), ("masked", 2)], ids=str)
def test_inactive_tokens_do_not_drown_the_gate(mode: str, accumulate: int) -> None:
    """In masked and trimmed mode their gradient grows like exp(score - lse); the others' stays as it is."""
    images, labels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % 10
    found = {}
    for limit in (0.0, 0.1):
        config = small_config(token_mode=mode, clip_gate_grad=limit, accumulate=accumulate)
        torch.manual_seed(0)
        model = build_model(config, 10)
        for block in model.blocks:
            block.attn.qkv.weight.data *= 40
        model.gate.fc4.bias.data.zero_()  # coarse and fine regions
        kept: list[Tensor] = []
        model.gate.register_forward_hook(
            lambda *arguments, kept=kept: (arguments[2].retain_grad(), kept.append(arguments[2]))[0]
        )
        (Objective(model, None, config)(images, labels).total / accumulate).backward()
        assert kept[0].grad is not None
        found[limit] = accumulate * 16 * kept[0].grad
    if mode == "packed":
        assert found[0.1].equal(found[0.0])
    else:
        assert found[0.0].abs().max() > 1
        torch.testing.assert_close(found[0.1], found[0.0].clamp(-0.1, 0.1))


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Also after either number continues a run of the other. The gate has no noise: each process would draw its own."""
    config = small_config(gate="entropy", cpu=True, checkpoint_steps=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    expected = start_run(config, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "one-two")
    shutil.rmtree(tmp_path / "one-two" / "checkpoints" / "step-00000008")
    mp.spawn(_process, (port, tmp_path, config), nprocs=2)
    shutil.copytree(tmp_path / "two", tmp_path / "two-one")
    shutil.rmtree(tmp_path / "two-one" / "checkpoints" / "step-00000008")
    resume_run(tmp_path / "two-one")
    for name in ("two", "one-two", "two-one"):
        found = load_run(tmp_path / name)
        for row, other in zip(metrics_of(found), metrics_of(expected), strict=True):
            assert row == pytest.approx(other, rel=1e-4), name
        torch.testing.assert_close(weights_of(found), weights_of(expected), rtol=1e-3, atol=1e-4)
