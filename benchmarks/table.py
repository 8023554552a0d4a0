"""Result tables: CSV files that grow by a row a run."""

import csv
import pathlib
from collections.abc import Mapping, Sequence


def start_table(table: pathlib.Path, columns: Sequence[str]) -> None:
    """Make a CSV file of a header alone, unless the file is there."""
    table.parent.mkdir(parents=True, exist_ok=True)
    if not table.exists():
        with table.open("x", newline="") as file:
            csv.writer(file).writerow(columns)


def append_row(table: pathlib.Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Add a row to a CSV file, with a header if the file is new; other keys are left out."""
    start_table(table, columns)
    with table.open("a", newline="") as file:
        csv.DictWriter(file, columns, extrasaction="ignore").writerow(row)
