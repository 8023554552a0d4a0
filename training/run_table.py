"""Run a paper's whole table: ``python training/run_table.py TABLE [--seeds 0 1 2] …``.

Every row is a recipe with the changes that `tables.py` names; each finished run adds a line to
``benchmarks/results/TABLE.csv``. Runs that are in the file are left out and an unfinished one goes
on from its last checkpoint, so the same command can be given again. ``--reduced`` takes the size
that the table has for a CPU. Any value of the recipes can be overridden for all rows, such as
``--data`` and ``--epochs``. A run counts as there if a line has its model, seed, size, epochs,
backend, precision, images of a class and the last part of ``--data``: give another ``--table``
where runs differ in something else.
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import os
import pathlib
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator

if __package__ in (None, ""):  # run as a file: find the packages beside this folder
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from benchmarks.processes import HIDDEN_GPUS
from benchmarks.table import append_row, start_table
from training import train
from training.recipe import Recipe, add_overrides, load_recipe, with_overrides
from training.tables import TABLES, Table

RESULTS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "results"
# Accuracies, single crop, of the sets of ``--verification-sets`` besides LFW.
SETS = ("sllfw", "calfw", "cplfw", "talfw", "cfp_fp", "agedb_30")
LFW_COUNT = (3000, 3000, 10)  # pairs of one person and of two, folds: View 2
COLUMNS = (
    "model",
    "seed",
    "data",
    "image_size",
    "top1",
    "top5",
    "top1_flip",
    "top5_flip",
    "lfw",
    "lfw_std",
    "lfw_flip",
    "lfw_auc",
    "lfw_xnorm",
    *SETS,
    "parameters",
    "classes",
    "images",
    "images_per_class",
    "epochs",
    "seconds",
    "images_per_second",
    "loss",
    "backend",
    "precision",
    "hardware",
    "commit",
    "command",
)


def row_recipe(table: Table, name: str, given: argparse.Namespace, seed: int) -> Recipe:
    """Return the recipe of a row with the command line's values, for one seed."""
    row = table.rows[name]
    recipe = load_recipe(row.recipe)
    for changes in (row.changes, *((table.reduced, row.reduced) if given.reduced else ())):
        merged = {k: {**getattr(recipe, k), **v} for k, v in changes.items() if isinstance(v, dict)}
        recipe = dataclasses.replace(recipe, **{**changes, **merged})
    return dataclasses.replace(with_overrides(recipe, given), seed=seed)


def run_table(given: argparse.Namespace, file: pathlib.Path, out: pathlib.Path) -> None:
    """Run what is missing of a table, one run after the other.

    Raises:
        keras_hybrid.export.ExportError: After the last run, if an export failed.
    """
    from training.report import failed_exports

    failed = []
    for recipe, key in missing_runs(given, file):
        start_table(file, COLUMNS)  # now: a file that does not fit must not cost a run its row
        model, seed = key["model"], key["seed"]
        print(f"{model}, seed {seed}", flush=True)
        folder = out / f"{model}_{seed}"
        results = train.run(recipe, folder, verbose=2)
        append_row(
            file,
            COLUMNS,
            {
                **results,
                **key,
                **verified(results),
                "hardware": given.hardware,
            },
        )
        failed += [f"{folder}: {reason}" for reason in failed_exports(results)]
    if failed:
        from keras_hybrid.export import ExportError

        reasons = "\n".join(failed)
        raise ExportError(
            f"The runs are done, and their rows in {file}, but not these exports; `keras-hybrid "
            f"export FOLDER/last.keras` tries one again.\n{reasons}"
        )


def verified(results: dict) -> dict[str, float]:
    """Return the columns of verification; LFW's are the set's, or of as many pairs."""
    sets = {
        name.lower().replace("-", "_"): (found["single crop"], found["crop and mirror image"])
        for name, found in results.get("verification_sets", {}).items()
    }
    pairs = results.get("verification")
    if "lfw" not in sets and pairs is not None:
        count = pairs["same_pairs"], pairs["different_pairs"], len(pairs["fold_accuracies"])
        if count == LFW_COUNT:
            sets["lfw"] = pairs, results["verification_flip"]
        else:
            print("The pairs are not LFW's: their figures are in results.json.", flush=True)
    columns = {name: single["accuracy"] for name, (single, _) in sets.items()}
    if "lfw" in sets:
        single, mirrored = sets["lfw"]
        columns["lfw_flip"] = mirrored["accuracy"]
        for figure in ("accuracy_std", "auc", "xnorm"):
            columns[f"lfw_{figure.removeprefix('accuracy_')}"] = single[figure]
    return columns


def run_side_by_side(
    given: argparse.Namespace,
    arguments: list[str],
    file: pathlib.Path,
    out: pathlib.Path,
    environment: dict[str, str],
) -> None:
    """Run what is missing of a table, ``--jobs`` runs at a time, each in a process of its own.

    Args:
        given: What ``parse`` made of ``arguments``.
        arguments: The command line's.
        file: The table.
        out: Folder of the runs' folders and logs.
        environment: The processes'.

    Raises:
        ChildProcessError: If any of them failed; the others are run all the same.
    """
    runs = dict.fromkeys((key["model"], key["seed"]) for _, key in missing_runs(given, file))
    start_table(file, COLUMNS)  # now: of two runs that end together both would write its header
    out.mkdir(parents=True, exist_ok=True)
    environment = {
        # JAX would take three quarters of a GPU's memory for the first run.
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / given.jobs:.2f}",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        **environment,
    }

    started: list[subprocess.Popen] = []

    def run(key: tuple[str, str]) -> str | None:
        model, seed = key
        log = out / f"{model}_{seed}.log"
        command = [sys.executable, __file__, *arguments]
        command += ["--rows", model, "--seeds", seed, "--jobs", "1"]
        with log.open("ab") as opened:
            process = subprocess.Popen(
                command, stdout=opened, stderr=subprocess.STDOUT, env=environment
            )
            started.append(process)
            status = process.wait()
        print(f"{model}, seed {seed}: {f'status {status}' if status else 'done'}", flush=True)
        return f"{log} (status {status})" if status else None

    former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        try:
            failed = [log for log in pool.map(run, runs) if log]
        finally:  # when this process is told to end, so are its runs
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:
                process.terminate()
            signal.signal(signal.SIGTERM, former)
    if failed:
        raise ChildProcessError(
            f"{len(failed)} of {len(runs)} runs did not end as they should: {', '.join(failed)}"
        )


def missing_runs(
    given: argparse.Namespace, file: pathlib.Path
) -> Iterator[tuple[Recipe, dict[str, str]]]:
    """Yield recipe and identifying columns of each run that is not in the file, seed by seed."""
    import keras

    table = TABLES[given.name]
    rows = given.rows or table.rows
    for model in rows:
        recipe = row_recipe(table, model, given, given.seeds[0])
        train.check(recipe)  # before the rows above are run
        if recipe.takes_landmarks:
            train.open_data(recipe)  # as where they are missing
    for seed in given.seeds:
        for model in rows:
            recipe = row_recipe(table, model, given, seed)
            key = {
                "model": model,
                "seed": str(seed),
                "data": pathlib.Path(recipe.data).name,
                "image_size": str(recipe.image_size),
                "images_per_class": str(recipe.images_per_class or ""),
                "precision": recipe.precision,
                "backend": keras.backend.backend(),
            }
            if recipe.patience is None:  # otherwise a run may have fewer epochs than its recipe
                key["epochs"] = str(recipe.epochs)
            there = next((row for row in _rows(file) if key.items() <= row.items()), None)
            if there is None:
                yield recipe, key
            else:  # of which other options are not known
                by = f", by: {there['command']}" if there.get("command") else ""
                print(f"{model}, seed {seed}: is in {file}{by}", flush=True)


def _rows(file: pathlib.Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; every row must take it, before hours go into the first."""
    parser = argparse.ArgumentParser(
        prog="run_table.py", description="Run a paper's table, or what is missing of it."
    )
    parser.add_argument("name", metavar="TABLE", choices=TABLES, help=", ".join(TABLES))
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--reduced", action="store_true", help="at the table's size for a CPU, in bfloat16"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time, which share a GPU; each writes to OUT/ROW_SEED.log",
    )
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"))
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument("--table", help="the CSV file (default: benchmarks/results/TABLE.csv)")
    parser.add_argument(
        "--out", help="folder for the runs (default: runs/NAME[_reduced], NAME as of the CSV file)"
    )
    add_overrides(parser)
    given = parser.parse_args(arguments)
    table = TABLES[given.name]
    unknown = sorted(set(given.rows or ()) - set(table.rows))
    if unknown:
        parser.error(f"--rows: {', '.join(unknown)}; {given.name} has {', '.join(table.rows)}.")
    if given.jobs < 1:
        parser.error(f"--jobs must be at least 1; got {given.jobs}.")
    if given.seed is not None:
        parser.error("Give --seeds instead of --seed.")
    if given.model is not None:
        parser.error(
            f"Every row has its model: choose some with --rows instead of --model {given.model}."
        )
    try:
        for name in given.rows or table.rows:
            row_recipe(table, name, given, given.seeds[0])
    except ValueError as error:
        parser.error(str(error))
    return given


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parse(arguments)
    table = pathlib.Path(given.table or RESULTS / f"{given.name}.csv")
    out = pathlib.Path(given.out or f"runs/{table.stem}{'_reduced' if given.reduced else ''}")

    if given.jobs == 1:
        return train.run_command(given.backend, lambda: run_table(given, table, out))
    environment = dict(os.environ)
    # The runs share the device: this process, which makes layers to check recipes, keeps off it.
    os.environ |= HIDDEN_GPUS
    try:
        return train.run_command(
            given.backend, lambda: run_side_by_side(given, arguments, table, out, environment)
        )
    finally:
        os.environ.clear()
        os.environ |= environment


if __name__ == "__main__":
    sys.exit(main())
