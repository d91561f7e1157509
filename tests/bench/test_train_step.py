"""bench/train_step.py: the contents of a step, its rows, and the inputs that it refuses."""

import dataclasses

import pytest
import torch

import msvit
from bench import train_step
from bench.failures import RefusalError
from bench.memory import peak_megabytes
from bench.rows import read_rows
from bench.vit.trainers import MODES, check, make_trainers
from tests.bench.helpers import CPU


@pytest.fixture(scope="module")
def trainers():
    return make_trainers("msvit_tiny_patch16_32_64", 4, 0.25, "sgd", CPU)


def test_a_step_trains_backbone_and_gate(trainers):
    assert [trainer.name for trainer in trainers] == ["plain", "masked", "trimmed", "packed"]
    for trainer in trainers:
        assert trainer.step().isfinite()
        names = [name for name, weight in trainer.model.named_parameters() if weight.grad is None]
        assert names == []
        if trainer.name != "plain":
            assert trainer.model.gate.fc4.bias.grad.abs().item() > 0
            assert trainer.model.token_mode == trainer.name


def test_all_models_have_the_same_weights(trainers):
    weights = [trainer.model.blocks[3].mlp.fc1.weight for trainer in trainers]
    assert all(torch.allclose(weights[0], weight, atol=1e-4) for weight in weights)


def test_tokens_follow_the_target(trainers):
    plain, _, _, packed = trainers
    assert plain.tokens() == 16
    fine = []
    for _ in range(20):
        packed.model.policy(packed.model.gate.sample(packed.model.gate(packed.images)), 2)
        fine.append((packed.tokens() / 4 - 1) / 3)
    assert sum(fine) / len(fine) == pytest.approx(0.25, abs=0.1)


def test_rows(tmp_path, capsys):
    train_step.main(["--quick", "--device", "cpu", "--output", str(tmp_path)])
    rows = read_rows(tmp_path / "train_step.csv")
    assert [row["method"] for row in rows] == ["plain", "masked", "trimmed", "packed"]
    for row in rows:
        assert 0 < float(row["step_p20_ms"]) <= float(row["step_p50_ms"]) <= float(row["step_p80_ms"])
        assert all(row[name] for name in ("model", "target", "optimizer", "machine", "torch", "commit", "date"))
    assert float(rows[1]["times_masked"]) == 1
    assert float(rows[0]["times_plain"]) == 1
    assert "Training step of msvit_tiny_patch16_32_64" in capsys.readouterr().out


def test_peak_memory_is_that_of_the_call():
    megabytes = peak_megabytes(lambda: torch.ones(64, 2**20).sum(), CPU)
    assert megabytes is None or 200 < megabytes < 400


def test_refuses_modes_that_disagree():
    trainers = make_trainers("msvit_tiny_patch16_32_64", 2, 0.25, "sgd", CPU)
    packed = next(trainer for trainer in trainers if trainer.name == "packed")
    with torch.no_grad():
        packed.model.head.bias += 1
    with pytest.raises(RefusalError, match="packed differs from masked, so it is not timed"):
        check(trainers)


@pytest.mark.parametrize("mode", MODES)
def test_refuses_a_gate_that_the_task_does_not_train(monkeypatch, mode):
    decide = msvit.MixedScaleVisionTransformer.decide

    def without_weight(model, *args, **kwargs):
        decision = decide(model, *args, **kwargs)
        return dataclasses.replace(decision, fine_weight=None) if model.token_mode == mode else decision

    monkeypatch.setattr(msvit.MixedScaleVisionTransformer, "decide", without_weight)
    trainers = make_trainers("msvit_tiny_patch16_32_64", 2, 0.25, "sgd", CPU)
    with pytest.raises(RefusalError, match=f"{mode}: the gate gets no gradient of the task"):
        check(trainers)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", "1"], "error: --batch: expected 2 or more, got 1"),
        (["--target", "1"], "error: --target: expected a share inside"),
        (["--model", "vit"], "error: name: expected msvit_"),
        (["--device", "tpu"], "error: --device: expected cpu or cuda"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_errors_are_one_line(options, words):
    with pytest.raises(SystemExit) as caught:
        train_step.main(options)
    assert words in caught.value.code
