"""The report's own measurements of a run: they agree with what training wrote, and with direct computation."""

import dataclasses
import math

import pytest
import torch

import msvit
from msvit.evaluation.by_image import Evaluation, TestImages, evaluate, load_test_images
from msvit.report.coverage import measure_coverage, object_regions
from msvit.report.latency import measure_latency
from msvit.report.settings import group_runs, mean_and_spread


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


def test_regions_of_a_box():
    boxes = torch.tensor([[0, 0, 16, 16], [15, 0, 17, 5], [40, 16, 48, 33]])
    expected = torch.zeros(3, 3, 3, dtype=torch.bool)
    expected[0, 0, 0] = True
    expected[1, 0, :2] = True
    expected[2, 1:, 2] = True
    assert torch.equal(object_regions(boxes, (3, 3), 16), expected)


def test_coverage_of_a_perfect_gate_and_of_chance():
    boxes = torch.tensor([[3, 3, 10, 10], [15, 0, 17, 5]]).repeat(2000, 1)
    covered = object_regions(boxes, (3, 3), 16)
    perfect = measure_coverage(covered, boxes, 16)
    assert (perfect.on_object, perfect.found) == (1, 1)
    # Two fine regions where two are the object's, one where one is.
    assert perfect.chance == pytest.approx((2 * 2 / 9 + 1 * 1 / 9) / 3)
    random = torch.rand(4000, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.3
    blind = measure_coverage(random, boxes, 16)
    assert blind.on_object == pytest.approx(blind.chance, abs=0.01)
    assert blind.found == pytest.approx(0.3, abs=0.02)
    nothing = measure_coverage(torch.zeros_like(random), boxes, 16)
    assert (math.isnan(nothing.on_object), nothing.found) == (True, 0)


def test_latency_grows_with_the_tokens(runs):
    models = {name: runs["learned-0"].model() for name in ("coarse", "fine")}
    for name, model in models.items():
        model.policy = msvit.policies.Threshold(0.0 if name == "fine" else 1.0)
        model.token_mode = "masked"
    images = load_test_images(runs["learned-0"]).images
    times = measure_latency(models, dict.fromkeys(models, images), torch.device("cpu"), 0.3)
    assert 0 < times["coarse"] < times["fine"]
    assert {model.token_mode for model in models.values()} == {"masked"}, "put back"


def test_test_images_come_in_the_order_of_the_data_set(runs):
    run = runs["learned-0"]
    test, dataset = load_test_images(run, 7), run.test_dataset()
    assert torch.equal(test.images, torch.stack([dataset[i][0] for i in range(7)]))
    assert test.labels.tolist() == [dataset[i][1] for i in range(7)]
    assert torch.equal(test.boxes, dataset.boxes[:7])
    assert test.first(3).images.shape[0] == test.first(3).boxes.shape[0] == 3
    assert TestImages(test.images, test.labels, None).first(2).boxes is None


def test_runs_that_differ_in_the_seed_are_one_setting(runs):
    settings = group_runs(list(runs.values()))
    assert [len(setting.runs) for setting in settings] == [2, 1]
    assert [setting.label for setting in settings] == ["learned, gbas", "radial"]
    assert [setting.label for setting in group_runs([runs["radial-0"]])] == ["radial"]


def test_labels_say_as_much_as_it_takes(runs):
    run = runs["learned-0"]
    others = [
        dataclasses.replace(run, config=run.config.replace(**values))
        for values in ({"lr": 0.5, "epochs": 9}, {"lr": 0.25}, {"lr": 0.5, "epochs": 9, "gate_target": 0.5})
    ]
    labels = [setting.label for setting in group_runs([run, *others])]
    assert len(set(labels)) == 4
    assert labels[-1].startswith("learned, gbas, gate target 0.5")
    assert not any("tokens per image" in label for label in labels), "the same in all of them"


def test_mean_and_spread():
    assert mean_and_spread([2.0]) == (2.0, 0.0)
    assert mean_and_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert all(map(math.isnan, mean_and_spread([1.0, math.nan])))
