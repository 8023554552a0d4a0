"""Result tables: CSV files that grow by a row a run."""

import csv
import os
import pathlib
from collections.abc import Mapping, Sequence


def start_table(table: pathlib.Path, columns: Sequence[str]) -> None:
    """Make a CSV file of a header alone; one that is there gets the columns that it lacks, empty.

    Raises:
        ValueError: If the file has columns that are not among these: it is another table. Or if a
            row has more values than columns.
    """
    table.parent.mkdir(parents=True, exist_ok=True)
    if not table.exists():
        with table.open("x", newline="") as file:
            csv.writer(file).writerow(columns)
        return
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        header, rows = list(reader.fieldnames or ()), list(reader)
    if header == list(columns):
        return
    unknown = [column for column in header if column not in columns]
    if unknown:
        raise ValueError(
            f"{table} is another table: it has the columns {', '.join(unknown)}, too, beside "
            f"those accepted, {', '.join(columns)}."
        )
    if any(None in row for row in rows):
        raise ValueError(f"{table} has a row of more values than its {len(header)} columns.")
    partial = table.with_name(f".{table.name}.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(partial, table)


def append_row(table: pathlib.Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Add a row to a CSV file, as `start_table` leaves it; other keys of the row are left out."""
    start_table(table, columns)
    with table.open("a", newline="") as file:
        csv.DictWriter(file, columns, extrasaction="ignore").writerow(row)
