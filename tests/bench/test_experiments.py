"""The experiments: which runs there are, that finished ones are skipped, and claims that follow the rows."""

import csv
import sys

import experiments
import experiments_page
import pytest
import torch
from experiments import SETTINGS, make_jobs

from msvit.files import write_rows
from msvit.training import load_run
from msvit.training.checkpoints import TRAINER_FILE, write_checkpoint
from msvit.training.metrics import COLUMNS, METRICS_FILE
from msvit.training.runs import create_run


def test_every_setting_is_a_configuration(tmp_path):
    waves = make_jobs(tmp_path, [], 3, False)
    jobs = [job for wave in waves for job in wave]
    assert len(jobs) == 3 * len(SETTINGS)
    assert [{job.setting.name for job in wave} for wave in waves][::2] == [{"pretrained"}, {"frozen", "frozen-masked"}]
    configs = [job.config() for job in jobs]  # raises where a value cannot be
    assert len({str(config) for config in configs}) == len(configs), "no two are alike"
    for job in jobs:
        from_scratch = job.setting.name in ("pretrained", "scratch")
        assert job.config().checkpoint == (
            None if from_scratch else str(tmp_path / f"pretrained-s{job.values['seed']}")
        )
        assert not job.is_finished()


def test_what_is_wanted_brings_what_it_starts_from(tmp_path):
    names = [[job.folder.name for job in wave] for wave in make_jobs(tmp_path, ["frozen"], 1, True)]
    assert names == [["pretrained-s0"], ["gbas-s0"], ["frozen-s0"]]
    with pytest.raises(ValueError, match=r"--only: expected pretrained, .*, got nonsense"):
        make_jobs(tmp_path, ["nonsense"], 1, True)


def call(monkeypatch, tmp_path, *options):
    paths = ("--runs", tmp_path / "runs", "--output", tmp_path / "rows.csv", "--page", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["experiments.py", *map(str, (*paths, *options))])
    experiments.main()


def test_trains_collects_writes_and_skips_what_is_finished(monkeypatch, tmp_path, capsys):
    options = ("--quick", "--seeds", 1, "--only", "pretrained", "--jobs", 2)
    call(monkeypatch, tmp_path, *options)
    assert "1 of 1 runs to train: pretrained-s0\npretrained-s0: finished" in capsys.readouterr().out
    run = load_run(tmp_path / "runs" / "pretrained-s0")
    (row,) = csv.DictReader((tmp_path / "rows.csv").open())
    assert float(row["top1"]) == pytest.approx(run.metrics[-1]["top1"])
    assert float(row["gmacs"]) == pytest.approx(run.metrics[-1]["gmacs"], rel=1e-5)
    assert row["setting"] == "pretrained"
    assert f"| {100 * float(row['top1']):.1f} |" in (tmp_path / "page.md").read_text()
    before = (tmp_path / "page.md").read_text()
    call(monkeypatch, tmp_path, *options)
    assert "0 of 1 runs to train" in capsys.readouterr().out
    call(monkeypatch, tmp_path, "--write")
    assert (tmp_path / "page.md").read_text() == before
    monkeypatch.setitem(experiments.QUICK, "epochs", 2)
    with pytest.raises(SystemExit, match=r"pretrained-s0: a run with other values of epochs; remove it"):
        call(monkeypatch, tmp_path, *options)


def test_no_finished_run_leaves_the_csv_as_it_is(monkeypatch, tmp_path):
    (tmp_path / "rows.csv").write_text("kept")
    with pytest.raises(SystemExit, match=r"error: .*rows\.csv: not written, as no run is finished"):
        call(monkeypatch, tmp_path, "--collect")
    assert (tmp_path / "rows.csv").read_text() == "kept"
    assert not (tmp_path / "page.md").exists()


def test_collecting_loses_no_row(monkeypatch, tmp_path):
    output = tmp_path / "rows.csv"
    monkeypatch.setattr(experiments, "_measure", lambda setting, run, device: {"setting": setting.name, "seed": run})
    monkeypatch.setattr(experiments, "load_run", lambda folder: int(folder.name[-1]))
    finished = {"pretrained-s0", "pretrained-s1", "l0-s0"}
    monkeypatch.setattr(experiments.Job, "is_finished", lambda job: job.folder.name in finished)

    def collect(seeds):
        experiments.collect(make_jobs(tmp_path, [], seeds, True), output, torch.device("cpu"))
        return [f"{row['setting']}-s{row['seed']}" for row in csv.DictReader(output.open())]

    assert collect(1) == ["pretrained-s0", "l0-s0"]
    assert collect(2) == ["pretrained-s0", "pretrained-s1", "l0-s0"]
    before = output.read_text()
    with pytest.raises(
        ValueError, match=r"it has rows of pretrained-s1, not finished or beyond --seeds; remove it first"
    ):
        collect(1)
    finished.remove("l0-s0")
    with pytest.raises(ValueError, match=r"it has rows of l0-s0, not finished or beyond --seeds; remove it first"):
        collect(2)
    assert output.read_text() == before
    output.unlink()
    assert collect(1) == ["pretrained-s0"]


@pytest.mark.parametrize("missing", ["--runs", "--output", "--page"])
def test_quick_needs_places_of_its_own(monkeypatch, tmp_path, capsys, missing):
    given = [name for name in ("--runs", "--output", "--page") if name != missing]
    paths = [word for name in given for word in (name, str(tmp_path / name))]
    monkeypatch.setattr(sys, "argv", ["experiments.py", "--quick", "--collect", *paths])
    with pytest.raises(SystemExit):
        experiments.main()
    assert "--quick: expected --runs, --output and --page too" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_its_last_checkpoint_a_run_is_not_finished(tmp_path):
    ((job,), *_) = make_jobs(tmp_path, ["pretrained"], 1, True)
    derived = {"num_classes": 10, "image_size": [48, 48], "coarse": 16, "steps_per_epoch": 4, "gate_setting": None}
    run = create_run(job.folder, job.config(), derived)
    write_rows(run.folder / METRICS_FILE, COLUMNS, [dict.fromkeys(COLUMNS, 1.0)])
    assert not job.is_finished(), "a row, but no checkpoint"
    write_checkpoint(run.folder, 3, torch.nn.Linear(1, 1), None, {})
    assert not job.is_finished(), "one of an earlier step"
    last = write_checkpoint(run.folder, 4, torch.nn.Linear(1, 1), None, {})
    assert job.is_finished()
    (last / TRAINER_FILE).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"):
        assert not job.is_finished()
    assert "--resume" in job.command()


def test_the_page_tells_its_source(monkeypatch, tmp_path):
    """Of another machine than this one, perhaps: what CI checks."""
    page, source = tmp_path / "page.md", tmp_path / "bench" / "results" / "other" / "experiments.csv"
    assert experiments_page.source_of(page) is None
    rows = [row("gbas", seed) for seed in range(2)]
    source.parent.mkdir(parents=True)
    write_rows(source, [*rows[0]], rows)
    monkeypatch.setattr(experiments_page, "ROOT", tmp_path)
    experiments_page.write_page(source, page)
    assert experiments_page.source_of(page) == source
    monkeypatch.setattr(sys, "argv", ["experiments.py", "--check", "--page", str(page)])
    experiments.main()
    page.write_text(page.read_text().replace("`gbas`", "`gbaz`", 1))
    with pytest.raises(SystemExit, match="differs from"):
        experiments.main()


def test_nothing_to_write_from(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match=r"rows\.csv: no such file"):
        call(monkeypatch, tmp_path, "--write")


def test_failed_run_names_its_log(monkeypatch, tmp_path):
    monkeypatch.setattr(experiments.Job, "command", lambda job: [sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(SystemExit, match="failed: pretrained-s0"):
        call(monkeypatch, tmp_path, "--quick", "--seeds", 1, "--only", "radial")
    assert (tmp_path / "runs" / "pretrained-s0.log").exists()


def row(setting, seed, **values):
    columns = [column for column, *_ in experiments_page._COLUMNS]
    numbers = {"tokens_per_image": 47, "gmacs": 0.02, **values}
    cells = {column: str(numbers.get(column, 0.5)) for column in columns}
    texts = dict.fromkeys(("machine", "torch", "commit", "test_images", "train_images"), "x")
    return {"setting": setting, "about": "what it is", "seed": str(seed), **texts, **cells}


def rows(**settings):
    """Three seeds of each setting; a value is the same number for each, or a list of three."""
    return {
        name.replace("_", "-"): [
            row(name, seed, **{key: value[seed] if isinstance(value, list) else value for key, value in values.items()})
            for seed in range(3)
        ]
        for name, values in settings.items()
    }


@pytest.mark.parametrize(
    ("learned", "radial", "tokens", "word"),
    [
        ([0.8, 0.82, 0.81], [0.6, 0.61, 0.63], 47, "**holds**"),
        ([0.6, 0.61, 0.63], [0.8, 0.82, 0.81], 47, "**does not hold**"),
        ([0.6, 0.7, 0.8], [0.71, 0.6, 0.77], 47, "**undecided**"),
        ([0.8, 0.82, 0.81], [0.6, 0.61, 0.63], 60, "**not decided: 28% more tokens**"),
        ([0.6, 0.61, 0.63], [0.8, 0.82, 0.81], 60, "**does not hold**"),
        ([0.8, 0.82, 0.81], [0.6, 0.61, 0.63], 40, "**holds**"),
        ([0.6, 0.61, 0.63], [0.8, 0.82, 0.81], 40, "**not decided: 15% fewer tokens**"),
        ([0.6, 0.7, 0.8], [0.71, 0.6, 0.77], 60, "**undecided**"),
    ],
    ids=[
        "better",
        "worse",
        "within_spread",
        "better_with_more",
        "worse_with_more",
        "better_with_fewer",
        "worse_with_fewer",
        "within_spread_with_more",
    ],
)
def test_learned_against_fixed(learned, radial, tokens, word):
    lines = experiments_page.learned_beats_fixed(
        rows(gbas={"top1": learned, "tokens_per_image": tokens}, radial={"top1": radial})
    )
    assert word in lines[0]
    assert lines[1:] == [f"- Learned gate against the {name} one: not measured." for name in ("random", "entropy")]


@pytest.mark.parametrize(
    ("packed", "word"),
    [
        ([0.80, 0.81, 0.82], "holds"),
        ([0.77, 0.78, 0.79], "does not hold"),
        ([0.75, 0.80, 0.85], "undecided"),
    ],
    ids=["equal", "three_points_less", "noisy"],
)
def test_packed_training_against_masked(packed, word):
    measured = rows(
        gbas={"top1": packed, "train_images_per_s": 300},
        gbas_masked={"top1": [0.80, 0.81, 0.82], "train_images_per_s": 100},
    )
    trimmed, mine = experiments_page.short_training_costs_little(measured)
    assert trimmed.endswith("not measured.")
    assert f"**{word}**" in mine
    assert "3.0x as many images/s" in mine


def test_dynamic_gate():
    measured = rows(gbas={"dynamics": [0.9, 0.91, 0.92]}, l0={"dynamics": [0.1, 0.11, 0.1]}, bas={"dynamics": 0.99})
    lines = experiments_page.gbas_is_dynamic(measured)
    assert "than L0: **holds** (91.0% against 10.3%" in lines[0]
    assert lines[1].endswith("not measured.")
    assert "**does not hold**" in lines[2]


@pytest.mark.parametrize(
    ("top1", "word"),
    [
        ([0.75, 0.77, 0.78], "**holds** (+1.7 ± 0.7 points; 76.7 % against 75.0 %"),
        ([0.70, 0.73, 0.76], "**does not hold** (-2.0 ± 1.2 points"),
        ([0.72, 0.78, 0.77], "**undecided** (+0.7 ± "),
    ],
    ids=["better", "worse", "within_spread"],
)
def test_against_plain_models_of_equal_cost(top1, word):
    # Seeds differ by more than the gain: only the plain models of the same seed tell.
    plain = rows(
        plain_80={"gmacs": 0.03, "top1": [0.88, 0.90, 0.92]}, plain_48={"gmacs": 0.01, "top1": [0.58, 0.60, 0.62]}
    )
    lines = experiments_page.mixed_scale_beats_plain({**plain, **rows(gbas={"gmacs": 0.02, "top1": top1})})
    assert word in lines[0]
    assert lines[1] == "- `gbas-25` against plain models: not measured."


def test_plain_models_are_interpolated_for_each_seed():
    plain = rows(plain_80={"gmacs": 0.03, "top1": 0.9}, plain_48={"gmacs": 0.01, "top1": 0.6})
    gbas = rows(gbas={"gmacs": [0.01, 0.02, 0.03], "top1": [0.65, 0.80, 0.95]})
    lines = experiments_page.mixed_scale_beats_plain({**plain, **gbas})
    assert "its 0.0200 GMACs: **holds** (+5.0 ± 0.0 points; 80.0 % against 75.0 %" in lines[0]


def test_plain_models_of_another_cost_decide_nothing():
    plain = rows(plain_80={"gmacs": 0.03, "top1": 0.9}, plain_48={"gmacs": 0.01, "top1": 0.6})
    outside = rows(gbas={"gmacs": [0.02, 0.005, 0.02], "top1": 1.0})
    lines = experiments_page.mixed_scale_beats_plain({**plain, **outside})
    assert lines[0] == "- `gbas`: 0.0050 GMACs with seed 1 lie outside the range of the plain models; **not decided**."
    one_seed = {name: mine[:1] for name, mine in {**plain, **rows(gbas={"top1": 1.0})}.items()}
    assert experiments_page.mixed_scale_beats_plain(one_seed)[0] == "- `gbas` against plain models: not measured."


def test_coverage_that_no_run_has():
    lines = experiments_page.fine_regions_find_the_digit(
        rows(
            gbas={"fine_on_digit": 0.6, "fine_on_digit_by_chance": 0.1, "digit_found": 0.8}, l0={"fine_on_digit": "nan"}
        )
    )
    assert lines == [
        "- `gbas`: 60% of the fine regions cover the digit, by chance 10%; 80% of the digit's regions are fine.",
        "- `l0`: in some run no region is fine.",
    ]


def test_only_what_is_between_the_lines_changes(tmp_path):
    source, page = tmp_path / "rows.csv", tmp_path / "page.md"
    experiments.write_csv(source, [row("gbas", seed) for seed in range(2)])
    page.write_text(f"before\n{experiments_page.BEGIN}\nobsolete\n{experiments_page.END}\nafter\n")
    experiments_page.write_page(source, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "obsolete" not in text
    experiments_page.write_page(source, page, check=True)
    page.write_text(text.replace("| 2 |", "| 3 |"))
    with pytest.raises(ValueError, match="differs from"):
        experiments_page.write_page(source, page, check=True)
    assert "| 3 |" in page.read_text(), "only compared"
    page.write_text("without the lines\n")
    with pytest.raises(ValueError, match="expected the lines"):
        experiments_page.write_page(source, page)
    assert page.read_text() == "without the lines\n"
