"""Reading and writing CSV rows."""

import csv

from bench import rows


def test_csv(tmp_path):
    rows.write_rows(tmp_path / "new" / "x.csv", [{"a": 1, "b": 0.123456789}, {"a": None, "c": "x, y"}])
    with (tmp_path / "new" / "x.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b", "c"], ["1", "0.123457", ""], ["", "", "x, y"]]


def test_rows_are_read_as_text(tmp_path):
    path = tmp_path / "x.csv"
    rows.write_rows(path, [{"a": 1, "b": None}, {"a": True}])
    assert rows.read_rows(path) == [{"a": "1", "b": ""}, {"a": "True", "b": ""}]
    assert rows.read_rows(tmp_path / "missing.csv") == []
