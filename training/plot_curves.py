"""Draw several runs' curves in one figure: ``python training/plot_curves.py RUN … --out FILE``.

The SAN report's Figure 4, of the runs of its table::

    python training/plot_curves.py runs/san/*_0 --quantities loss --out san_loss.png

Without ``--quantities`` it draws loss and accuracy; any column of ``history.csv`` will do, such as
``pairs_accuracy`` and ``pairs_xnorm`` of runs that verify pairs. A run that still goes on is drawn
as far as it is.
"""

import argparse
import pathlib
import sys

if __package__ in (None, ""):  # run as a file: find the package beside this folder
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from training import train


def find_histories(runs: list[pathlib.Path], labels: list[str] | None) -> dict[str, pathlib.Path]:
    """Return the CSV log of each run by its name in the legend.

    Args:
        runs: Folders of runs, or the CSV files themselves.
        labels: Names; ``None``: those of the folders, or their paths where two have one name.

    Raises:
        ValueError: If a run has no log, or the labels do not fit.
    """
    files = [run / "history.csv" if run.is_dir() else run for run in runs]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"There is no {', '.join(missing)}. A run has its log after the first epoch."
        )
    if labels is None:
        labels = [file.parent.name if file.name == "history.csv" else file.stem for file in files]
        if len(set(labels)) < len(labels):
            labels = [str(run) for run in runs]
    if len(labels) != len(files) or len(set(labels)) < len(labels):
        raise ValueError(
            f"--labels must be {len(files)} different names, one for each run; got {labels}."
        )
    return dict(zip(labels, files, strict=True))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="plot_curves.py", description="Draw the curves of several runs in one figure."
    )
    parser.add_argument(
        "runs", nargs="+", type=pathlib.Path, metavar="RUN", help="folder of a run, or its CSV log"
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a .png, .svg or .pdf file")
    parser.add_argument("--labels", nargs="+", help="names in the legend, one for each run")
    parser.add_argument(
        "--quantities", nargs="+", default=["loss", "accuracy"], help="default: loss accuracy"
    )
    given = parser.parse_args(arguments)

    def action() -> None:
        from keras_hybrid.evaluation import plot_histories

        histories = find_histories(given.runs, given.labels)
        print(f"Written: {plot_histories(histories, given.out, given.quantities)}")

    return train.run_command(None, action)


if __name__ == "__main__":
    sys.exit(main())
