"""Evaluations by image agree with the scores of training, and with direct computation."""

import math

import pytest
import torch

import msvit
from msvit.evaluation.by_image import Evaluation, TestImages, evaluate
from msvit.report.images import load_test_images
from tests.model.model_helpers import images_of
from tests.model.reducer_helpers import EverySecond, make_model


@pytest.mark.parametrize("name", ["learned-0", "radial-0"])
def test_agrees_with_the_last_row_of_the_metrics(runs, name):
    run = runs[name]
    found = evaluate(run.model(), load_test_images(run), run.config.batch_size)
    row = run.metrics[-1]
    assert found.top1 == pytest.approx(row["top1"])
    assert found.tokens_per_image == pytest.approx(row["tokens_per_image"], rel=1e-5)
    assert found.fine_share == pytest.approx(row["fine_share"], rel=1e-5)
    assert found.gmacs == pytest.approx(row["gmacs"], rel=1e-5)


def test_given_masks_replace_the_gate(runs):
    run = runs["learned-0"]
    model, test = run.model(), load_test_images(run, 10)
    masks = torch.zeros(10, 3, 3, dtype=torch.bool)
    masks[3, 1] = True
    found = evaluate(model, test, 4, masks)
    assert torch.equal(found.masks, masks)
    assert found.tokens.tolist() == [9 + 9 * (i == 3) for i in range(10)]
    with torch.no_grad():
        assert torch.equal(found.correct, model(test.images, masks).argmax(1) == test.labels)
    expected = (9 * msvit.macs(model, 9) + msvit.macs(model, 18)) / 10 + msvit.gate_macs(model)
    assert found.gmacs == pytest.approx(expected / 1e9)


def test_dynamics():
    def of(masks):
        return Evaluation(masks, torch.zeros(len(masks), dtype=torch.bool), torch.zeros(len(masks)), 0.0).dynamics

    generator = torch.Generator().manual_seed(0)
    static = (torch.rand(1, 4, 4, generator=generator) < 0.3).expand(50, -1, -1)
    assert of(static) == pytest.approx(0)
    assert of(torch.eye(16, dtype=torch.bool).view(16, 4, 4)) == pytest.approx(1)
    assert of(torch.ones(5, 4, 4, dtype=torch.bool)) == 0
    mixed = torch.rand(200, 4, 4, generator=generator) < torch.rand(1, 4, 4, generator=generator)
    between_images = mixed.double().var(0, correction=0).mean() / mixed.double().var(correction=0)
    assert of(mixed) == pytest.approx(float(between_images))


def test_reducers_change_answers_but_no_counts() -> None:
    images, labels = images_of(48, 6), torch.arange(6) % 5
    model, test = make_model({1: EverySecond("before_block")}, gate="mlp").float(), TestImages(images, labels, None)
    found = evaluate(model, test, 4)
    assert math.isnan(found.gmacs)
    with torch.no_grad():
        assert torch.equal(found.correct, model(images).argmax(1) == labels)
    model.reducers.clear()
    plain = evaluate(model, test, 4)
    assert plain.gmacs > 0
    assert torch.equal(found.tokens, plain.tokens)
