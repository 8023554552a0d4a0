"""The committed tables of results."""

import csv
import pathlib

import pytest

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "results"

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("table", sorted(RESULTS.glob("*.csv")), ids=lambda table: table.stem)
def test_no_row_of_a_table_is_there_twice(table):
    with table.open(newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    assert len(rows) == len(set(rows))
