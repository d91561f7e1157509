"""The page of the experiments: its source, and the text around the generated part."""

import pytest

from bench.experiments import __main__ as command
from bench.experiments import page as experiments_page
from bench.experiments.studies import DIGITS
from bench.rows import write_rows
from tests.bench.experiment_rows import row


def test_the_page_names_its_source(monkeypatch, tmp_path):
    """The source may be from another machine, as in CI."""
    page, source = tmp_path / "page.md", tmp_path / "bench" / "results" / "other" / "experiments.csv"
    assert experiments_page.source_of(page, experiments_page.MARKERS) is None
    rows = [row("gbas", seed) for seed in range(2)]
    source.parent.mkdir(parents=True)
    write_rows(source, rows)
    monkeypatch.setattr(experiments_page, "ROOT", tmp_path)
    experiments_page.write_page(DIGITS, source, page)
    assert experiments_page.source_of(page, experiments_page.MARKERS) == source
    command.main(["--check", "--study", "digits", "--page", str(page)])
    page.write_text(page.read_text().replace("`gbas`", "`gbaz`", 1))
    with pytest.raises(SystemExit, match="differs from"):
        command.main(["--check", "--study", "digits", "--page", str(page)])


def test_only_what_is_between_the_lines_changes(tmp_path):
    source, page = tmp_path / "rows.csv", tmp_path / "page.md"
    write_rows(source, [row("gbas", seed) for seed in range(2)])
    page.write_text(f"before\n{experiments_page.MARKERS.begin}\nobsolete\n{experiments_page.MARKERS.end}\nafter\n")
    experiments_page.write_page(DIGITS, source, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "obsolete" not in text
    experiments_page.write_page(DIGITS, source, page, check=True)
    page.write_text(text.replace("| 2 |", "| 3 |"))
    with pytest.raises(ValueError, match="differs from"):
        experiments_page.write_page(DIGITS, source, page, check=True)
    assert "| 3 |" in page.read_text(), "only compared"
    page.write_text("without the lines\n")
    with pytest.raises(ValueError, match="expected the lines"):
        experiments_page.write_page(DIGITS, source, page)
    assert page.read_text() == "without the lines\n"
