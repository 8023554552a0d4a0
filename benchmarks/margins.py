"""Do margin losses train a hybrid from scratch? Curves of each under the quickstart recipe.

    python benchmarks/margins.py

The field knows ArcFace (m 0.5, s 64) to stall on transformers trained from scratch where CosFace
converges. This runs the quickstart's FaceRec-small on synthetic identities with each loss, only
the loss and its numbers changed, and writes every epoch to a CSV file and the curves to a PNG.
"""

import argparse
import csv
import dataclasses
import os
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

# name: (loss, margin, scale)
LOSSES = {
    "CosFace m 0.35 s 30": ("cosface", 0.35, 30.0),
    "ArcFace m 0.5 s 30": ("arcface", 0.5, 30.0),
    "CosFace m 0.35 s 64": ("cosface", 0.35, 64.0),
    "ArcFace m 0.5 s 64": ("arcface", 0.5, 64.0),
    "no margin s 30": ("softmax", None, 30.0),
}


def main() -> None:
    """Run every loss and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--table", default=str(ROOT / "benchmarks/results/margins.csv"))
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores")
    given = parser.parse_args()
    os.environ["KERAS_BACKEND"] = given.backend

    from training import train
    from training.recipe import load_recipe
    from training.report import commit

    rows = []
    for name, (loss, margin, scale) in LOSSES.items():
        recipe = dataclasses.replace(
            load_recipe("quickstart"),
            loss=loss,
            margin=margin,
            scale=scale,
            seed=given.seed,
            pairs=None,
            export="none",
            validation_every=1,
        )
        with tempfile.TemporaryDirectory() as folder:
            train.run(recipe, pathlib.Path(folder), verbose=0)
            with (pathlib.Path(folder) / "history.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    rows.append(
                        {
                            "loss_function": name,
                            "epoch": int(row["epoch"]) + 1,
                            **{k: round(float(row[k]), 4) for k in ("loss", "accuracy")},
                            **{k: round(float(row[k]), 4) for k in ("val_loss", "val_accuracy")},
                            "seed": given.seed,
                            "backend": given.backend,
                            "hardware": given.hardware,
                            "commit": commit(),
                        }
                    )
    table = pathlib.Path(given.table)
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, table.with_suffix(".png"))


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Draw validation accuracy over epochs, one curve for each loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, style in zip(LOSSES, ("-", "--", "-.", ":", (0, (5, 1))), strict=True):
        curve = [row for row in rows if row["loss_function"] == name]
        axes.plot(
            [row["epoch"] for row in curve],
            [row["val_accuracy"] for row in curve],
            linestyle=style,
            label=name,
        )
    axes.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
