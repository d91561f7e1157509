"""python -m bench.gpu_report without a GPU: its parts, its pages and its exit code."""

import sys

import pytest

from bench.attention.workloads import HEADLINE
from bench.gpu_report import __main__ as report
from bench.gpu_report import commands, ncu, parts
from bench.rows import write_rows


def test_a_command_is_stopped_at_its_limit():
    result = commands.run([sys.executable, "-c", "print('begun'); import time; time.sleep(60)"], limit=2)
    assert result.code is None
    assert result.output == "begun\n"
    assert result.seconds < 20
    assert result.failure(2) == "stopped after 2 s"
    assert commands.run(["/nowhere/program"], limit=1).code == 127
    assert commands.find("no-such-program") is None


def test_a_part_that_fails_stops_nothing(monkeypatch, tmp_path, capsys):
    def broken(report, seconds):
        raise RuntimeError("no luck")

    monkeypatch.setitem(parts.PARTS, "tests", broken)
    code = report.main(["--parts", "tests,sanitizer,profile", "--device", "cpu", "--output", str(tmp_path)])
    assert code == 1
    printed = capsys.readouterr().out
    assert "tests            failed" in printed
    assert "sanitizer        skipped" in printed
    assert "| tests | failed | 0 s | no luck |" in (tmp_path / "report.md").read_text()


def test_without_a_gpu_nothing_fails(capsys):
    assert report.main(["--parts", "build,tests,sanitizer,latency,profile", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("skipped after") == 5
    assert "no GPU on this machine" in printed


def test_report_of_rows_that_are_there(tmp_path):
    facts = {"machine": "GPU X", "torch": "3", "triton": "4", "timm": "1"}
    config = {"workload": HEADLINE, "kernel": "fwd", "weighted": True, "BLOCK_N": 32, "num_warps": 4, "num_stages": 3}
    rows = [
        config | facts | {"BLOCK_M": size, "p50_us": time, "usual": size == 16, "commit": "new", "date": "2031"}
        for size, time in ((16, 9), (32, 3), (64, 1.25), (128, 2))
    ]
    write_rows(tmp_path / "tune.csv", rows)
    counters = dict.fromkeys(ncu.COLUMNS, 1) | {"kernel": "f<int>", "stalls": "wait 2.00"}
    write_rows(tmp_path / "profile.csv", [counters | facts | {"machine": "-", "commit": "old", "date": "2030"}])
    assert report.main(["--tables", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# GPU report: GPU X\n\ntorch 3, triton 4, timm 1, commit old, new, 2031.")
    assert (
        text.index("## Targets")
        < text.index("| tune.csv | new | 2031 | 4 |")
        < text.index("at commit old.\n\n| kernel")
    )
    assert "| `f<int>` | 1.0 | 1.0 |" in text
    cells = "**1.2** 64x32 w4 s3 | **2.0** 128x32 w4 s3 | **3.0** 32x32 w4 s3 | **9.0** 16x32 w4 s3 |"
    assert f"| {HEADLINE} | fwd, key weight | {cells}" in text
    assert {path.name for path in tmp_path.iterdir()} == {"tune.csv", "profile.csv", "report.md"}


def test_report_of_no_rows(tmp_path):
    with pytest.raises(SystemExit, match="error: --tables: expected a folder with CSV rows"):
        report.main(["--tables", str(tmp_path)])


def test_time_that_is_over(capsys):
    assert report.main(["--parts", "attention", "--device", "cpu", "--seconds", "1"]) == 0
    assert "attention skipped after 0 s: the time is over" in capsys.readouterr().out


def test_every_part_has_its_share():
    assert list(parts.PARTS) == list(parts.SHARES)


def test_wrong_part():
    with pytest.raises(SystemExit) as caught:
        report.main(["--parts", "attention,lunch"])
    assert caught.value.code.startswith("error: --parts: expected some of build, tests")
    assert caught.value.code.endswith("got 'lunch'")
