"""Result tables: CSV files that grow by a row a run."""

import csv
import pathlib
from collections.abc import Mapping, Sequence


def append_row(table: pathlib.Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Add a row to a CSV file, with a header if the file is new; other keys are left out."""
    table.parent.mkdir(parents=True, exist_ok=True)
    is_new = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        if is_new:
            writer.writeheader()
        writer.writerow(row)
