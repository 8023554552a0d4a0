"""Result tables that grow by a row a run."""

import csv

import pytest

from benchmarks.table import append_row, start_table

pytestmark = pytest.mark.any_backend


def rows(table):
    with table.open(newline="") as file:
        return list(csv.reader(file))


def test_a_row_has_a_header_and_leaves_out_what_has_no_column(tmp_path):
    table = tmp_path / "results" / "runs.csv"
    append_row(table, ("model", "top1"), {"model": "vit", "top1": 0.5, "loss": 2})
    append_row(table, ("model", "top1"), {"model": "a, b"})
    assert rows(table) == [["model", "top1"], ["vit", "0.5"], ["a, b", ""]]


def test_an_older_table_gets_the_columns_that_it_lacks(tmp_path):
    table = tmp_path / "runs.csv"
    append_row(table, ("model", "top1"), {"model": "vit", "top1": 0.5})
    append_row(table, ("model", "lfw", "top1"), {"model": "cct", "lfw": 0.9, "top1": 0.6})
    assert rows(table) == [["model", "lfw", "top1"], ["vit", "", "0.5"], ["cct", "0.9", "0.6"]]
    before = table.read_bytes()
    start_table(table, ("model", "lfw", "top1"))
    assert table.read_bytes() == before and list(tmp_path.iterdir()) == [table]


def test_another_table_is_left_as_it_is(tmp_path):
    table = tmp_path / "runs.csv"
    append_row(table, ("model", "milliseconds"), {"model": "vit", "milliseconds": 3})
    before = table.read_bytes()
    with pytest.raises(ValueError, match=r"runs.csv is another table: .* milliseconds, too"):
        append_row(table, ("model", "top1"), {"model": "vit", "top1": 0.5})
    assert table.read_bytes() == before
    table.write_text("model\nvit,3\n")
    with pytest.raises(ValueError, match=r"runs.csv has a row of more values than its 1 columns"):
        append_row(table, ("model", "top1"), {"model": "vit", "top1": 0.5})
    assert list(tmp_path.iterdir()) == [table]
