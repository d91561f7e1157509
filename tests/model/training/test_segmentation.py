"""Training of a Segmenter: its scores, its weights and gate, resuming, and data that cannot be used."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from msvit.data.segmentation import IGNORE_INDEX
from msvit.evaluation.segmentation import MeanIoU
from msvit.gates import load_gate, save_gate
from msvit.training import Config, Run, load_run, make_config, resume_run, start_run
from msvit.training.build import build_model
from msvit.training.evaluation_job import evaluate_checkpoint
from msvit.training.metrics import columns_of
from msvit.training.optim import Part, make_parts
from msvit.training.tasks.segmentation import Segmentation
from msvit.training.trainer import Trainer
from tests.model.training.run_helpers import (
    assert_same_run,
    interrupted,
    metrics_of,
    paired_folders,
    segmentation_config,
    small_config,
)


def folders_config(root: Path, **values: Any) -> Config:
    small = {"data": str(root), "batch_size": 2, "epochs": 1}
    return segmentation_config(
        **{**small, "photometric": True, "scale_min": 0.5, "scale_max": 2.0, "flip": 0.5, **values}
    )


def class_rows(run: Run) -> list[dict[str, str]]:
    with (run.folder / "classes.csv").open() as file:
        return [*csv.DictReader(file)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return start_run(segmentation_config(), tmp_path_factory.mktemp("runs") / "digits")


def test_folder_of_a_run(run: Run) -> None:
    header = (run.folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert header == [*columns_of(Segmentation.test_columns)]
    assert run.derived["classes"] == [*"0123456789", "photograph"]
    model, tests, row = run.model(), run.test_dataset(), run.metrics[-1]
    logits = model.predict(tests.images, 32, 32)
    expected = MeanIoU(11)
    expected.update(logits.argmax(1), tests.labels)
    scores = expected.compute()
    assert (row["miou"], row["pixel_accuracy"]) == pytest.approx((float(scores.mean_iou), float(scores.accuracy)))
    assert row["test_loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, tests.labels.long())), rel=1e-4)
    fine = model.encoder.decide(tests.images).fine_mask
    assert row["tokens_per_image"] == pytest.approx(4 + 3 * float(fine.sum()) / len(fine))
    pixels = fine.repeat_interleave(16, 1).repeat_interleave(16, 2)
    for label, found in enumerate(class_rows(run)):
        mine = tests.labels == label
        assert float(found["coarse_share"]) == pytest.approx(float((mine & ~pixels).sum() / mine.sum()), nan_ok=True)
        assert float(found["iou"]) == pytest.approx(float(scores.iou[label]), nan_ok=True)


def test_evaluation_gives_the_scores_of_training(run: Run) -> None:
    name, found = evaluate_checkpoint(run.folder, {})
    assert name.endswith("step-00000006/model.safetensors")
    assert found.columns == {column: run.metrics[-1][column] for column in Segmentation.test_columns}
    assert found.text.startswith(f"mIoU {run.metrics[-1]['miou']:.2%}, pixel accuracy ")
    _, other = evaluate_checkpoint(run.folder, {"window": 16, "stride": 8, "gate": "fine"})
    assert (other.columns["tokens_per_image"], other.columns["fine_share"]) == (4, 1)


def test_an_interrupted_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    values = {"decoder_dropout": 0.3, "drop_path": 0.3, "gate": "random", "accumulate": 2, "checkpoint_steps": 1}
    config = segmentation_config(**values)
    expected = start_run(config, tmp_path / "whole")
    with interrupted(after_steps=4):
        start_run(config, tmp_path / "parts")
    found = resume_run(tmp_path / "parts")
    assert_same_run(found, expected)
    assert class_rows(found) == class_rows(expected)


def test_augmented_folders_continue_with_other_workers(tmp_path: Path) -> None:
    config = folders_config(paired_folders(tmp_path / "data"), checkpoint_steps=1, num_workers=1)
    expected = start_run(config, tmp_path / "whole")
    with interrupted(after_steps=2):
        start_run(config.replace(num_workers=0), tmp_path / "parts")
    found = resume_run(tmp_path / "parts")
    assert metrics_of(found) == metrics_of(expected)
    assert [row["class"] for row in class_rows(found)] == ["cat", "dog"]


def test_files_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    root = paired_folders(tmp_path / "data")
    (root / "train" / "annotations" / "0.png").write_bytes(b"nothing")
    (root / "val" / "images" / "2.png").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"left out: .*(annotations/0|images/2)\.png: not a readable image"):
        start_run(folders_config(root, batch_size=3), tmp_path / "run")
    _, found = evaluate_checkpoint(tmp_path / "run", {"stride": 16, "gate": "entropy", "gate_target": 0.5})
    assert (found.images, found.left_out) == (2, 1)


@pytest.mark.parametrize(
    ("values", "classes", "words"),
    [
        ({"num_classes": 2}, "cat", r"0\.png: expected values from 0 to 0 for 1 classes"),
        ({}, "cat", "--data .*: expected two classes or more, got 1"),
        ({}, None, r"--data .*expected the names of the classes.*; see --class-list"),
        ({"class_list": "none.txt"}, "cat\ndog", r"^--class-list none\.txt: cannot be read"),
        ({"data": "digits", "class_list": "ade20k"}, "", "--class-list: expected only with a folder in --data"),
        ({"tokens_per_image": 20, "window": 16}, "cat\ndog", "--tokens-per-image, --window 16: .* to 4 .*, got 20"),
        ({"num_classes": 1}, "cat\ndog", "--num-classes: expected at least the 2 classes"),
        ({"data": "nowhere"}, "cat\ndog", "--data: expected 'digits' or a folder, got nowhere"),
    ],
    ids=["value", "one-class", "no-classes", "class-list", "digits", "window", "num-classes", "no-folder"],
)
def test_data_that_do_not_fit_are_named(
    tmp_path: Path, values: dict[str, Any], classes: str | None, words: str
) -> None:
    root = paired_folders(tmp_path / "data")
    (root / "classes.txt").unlink() if classes is None else (root / "classes.txt").write_text(classes)
    with pytest.raises(ValueError, match=words):
        start_run(folders_config(root, **values), tmp_path / "run")


def test_nan_stops_and_names_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._train_step

    def step(self: Trainer, batches: Any) -> dict[str, float]:
        if self.step == 4:
            self.model.decoder.mask_norm.bias.data[0] = torch.nan
        return original(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", step)
    words = r"the loss is not finite at step 4 \(batch 1 of epoch 2, .*; weights are not finite: decoder.mask_norm.bias"
    with pytest.raises(FloatingPointError, match=words):
        start_run(segmentation_config(), tmp_path / "run")
    assert load_run(tmp_path / "run").checkpoint().step == 3


def test_the_loss_is_a_mean_over_pixels_with_a_class(run: Run) -> None:
    model, task = run.model(), Segmentation(run.config)
    images = run.test_dataset().images[:2]
    labels = run.test_dataset().labels[:2].clone()
    labels[:, :20] = IGNORE_INDEX
    decision = model.encoder.decide(images)
    expected = nn.functional.cross_entropy(model(images)[:, :, 20:], labels[:, 20:].long())
    torch.testing.assert_close(task.loss(model, images, labels, decision), expected)
    nothing = task.loss(model, images, torch.full_like(labels, IGNORE_INDEX), decision)
    nothing.backward()
    assert nothing == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_schedule_is_that_of_the_recipe() -> None:
    config = make_config("ade20k", epochs=3)
    parameter = nn.Parameter(torch.zeros(1))
    part = Part([{"params": [parameter], "lr": config.lr, "weight_decay": 0.0}], config, config.warmup_epochs, 10)
    for step in range(30):
        part.set_step(step)
        assert part.optimizer.param_groups[0]["lr"] == pytest.approx((1e-3 - 1e-5) * (1 - step / 30) ** 0.9 + 1e-5)


def test_position_and_class_embeddings_do_not_decay() -> None:
    config = segmentation_config(weight_decay=0.5)
    model = build_model(config, 11)
    (part,) = make_parts(model, None, config, 4)
    decay = {id(p): group["weight_decay"] for group in part.optimizer.param_groups for p in group["params"]}
    matrices = {name for name, p in model.named_parameters() if decay[id(p)]}
    assert {"encoder.blocks.0.attn.qkv.weight", "decoder.proj_patch"} <= matrices
    assert not matrices & {"encoder.pos_embed", "encoder.cls_token", "decoder.cls_emb"}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = small_config(epochs=1, gate_lr_scale=100.0, global_pool="token")
    return start_run(config, tmp_path_factory.mktemp("runs") / "classifier")


@pytest.mark.parametrize("source", ["run", "checkpoint", "file"])
def test_a_gate_from_a_run_or_a_file_is_frozen(classifier: Run, tmp_path: Path, source: str) -> None:
    """Its position encodings are resampled, and its first layer is adapted to other means."""
    save_gate(classifier.model().gate, tmp_path / "gate.safetensors")
    path = {
        "run": classifier.folder,
        "checkpoint": classifier.checkpoint().folder / "model.safetensors",
        "file": tmp_path / "gate.safetensors",
    }[source]
    expected = load_gate(tmp_path / "gate.safetensors", (3, 3), [0.65] * 3, [0.25] * 3).state_dict()
    config = segmentation_config(gate="learned", freeze="gate", gate_file=str(path), image_size=48)
    model = build_model(config, 11)
    assert all(tensor.equal(expected[name]) for name, tensor in model.gate.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.gate.parameters())


def test_a_frozen_gate_stays_and_decides_without_noise(classifier: Run, tmp_path: Path) -> None:
    config = segmentation_config(gate="learned", freeze="gate", gate_file=str(classifier.folder), epochs=1)
    found = start_run(config, tmp_path / "run")
    before = build_model(config, 11).gate
    after = found.model().gate
    assert all(tensor.equal(before.state_dict()[name]) for name, tensor in after.state_dict().items())
    share = float((after(found.train_dataset().images) > 0).float().mean())
    assert found.metrics[0]["train_tokens_per_image"] == pytest.approx(4 + 12 * share)


def test_a_run_without_a_learned_gate_has_none_to_give(run: Run) -> None:
    with pytest.raises(ValueError, match=r"--gate-file .*: expected a run with --gate learned, got entropy"):
        build_model(segmentation_config(gate="learned", freeze="gate", gate_file=str(run.folder)), 11)


def test_weights_come_from_a_classifier_or_a_segmenter(classifier: Run, run: Run) -> None:
    gate: dict[str, Any] = {"gate": "learned", "freeze": "gate"}
    of_classifier = build_model(segmentation_config(checkpoint=str(classifier.folder), **gate), 11).state_dict()
    own = classifier.model().state_dict()
    for name in ("blocks.1.attn.qkv.weight", "gate.fc1.weight"):
        assert of_classifier[f"encoder.{name}"].equal(own[name])
    own = run.model().state_dict()
    for new_head in (False, True):
        found = build_model(segmentation_config(checkpoint=str(run.folder), new_head=new_head), 11).state_dict()
        assert found["encoder.pos_embed"].equal(own["encoder.pos_embed"])
        assert found["decoder.cls_emb"].equal(own["decoder.cls_emb"]) is not new_head


@pytest.mark.parametrize(
    ("model", "decoder", "expected"),
    [
        ("msvit_seg_tiny_mask_patch8_16_80", None, "MaskTransformer"),
        ("msvit_seg_tiny_mask_patch8_16_80", "linear", "LinearDecoder"),
        ("msvit_tiny_patch8_16_80", None, "MaskTransformer"),
        ("vit_tiny_patch16_224", "linear", "LinearDecoder"),
    ],
)
def test_decoders_of_any_backbone(model: str, decoder: str | None, expected: str) -> None:
    found = build_model(segmentation_config(model=model, decoder=decoder, decode="grid"), 3)
    assert type(found.decoder).__name__ == expected
    assert (found.num_classes, found.decode) == (3, "grid")


def test_pixels_without_a_class_only_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = run.test_dataset()
    dataset.labels = torch.full_like(dataset.labels, IGNORE_INDEX)
    monkeypatch.setattr(Segmentation, "dataset", lambda *arguments: dataset)
    with pytest.raises(ValueError, match="expected at least one test image with a pixel that has a class"):
        evaluate_checkpoint(run.folder, {})
