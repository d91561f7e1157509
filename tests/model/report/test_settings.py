"""Runs that differ in their seed are one setting; its label and its mean."""

import dataclasses
import math

from msvit.report.settings import group_runs, mean_and_spread


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
