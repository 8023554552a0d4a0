"""The paper's missing experiment: ViT, CCT, FaceRec and FaceRec-small under one recipe.

FaceRec's Figure 6 sets its 20.36 % on 306 CelebA identities beside figures that other papers report
on other data. This script trains all of them on the same images with the same recipe
(``training/recipes/facerec_small.py``: CosFace, Muon, 40 epochs, 64×64) and adds one row a run to
a CSV file. Runs that are in the file already are left out, so an interrupted table goes on with the
same command.

    python benchmarks/facerec_306.py --data faces.csv --images faces.zip --seeds 0 1 2 \
        --backend jax --precision mixed_bfloat16

``faces.csv`` has the columns file, label and split (train or test); the images cannot be
redistributed. The data set's own near-duplicates stay in: about 2.5 % of the test images have one
of the same identity among the training images.
"""

import argparse
import csv
import dataclasses
import os
import pathlib
import platform
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

# One budget: 64 tokens of width 192 and 127 to 155 million multiply-accumulates at 64×64.
ENCODER = {"dim": 192, "num_heads": 6, "mlp_ratio": 2.0, "embedding_dim": 256}
MODELS = {
    "vit": ("vit_ti16", {**ENCODER, "patch_size": 8, "depth": 6, "drop_path": 0.1}),
    "cct": ("cct_7_3x1", {**ENCODER, "num_convolutions": 3, "depth": 4}),
    "facerec": ("facerec", {**ENCODER, "patch_size": 8, "depth": 6, "conv_dim": 48}),
    "facerec_small": ("facerec_small", {}),
    "facerec_small_without_convolutional_attention": (
        "facerec_small",
        {"convolutional_attention": False},
    ),
}
COLUMNS = (
    "model",
    "seed",
    "top1",
    "top5",
    "top1_flip",
    "top5_flip",
    "parameters",
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


def main() -> None:
    """Run what is missing from the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="CSV of file, label, split")
    parser.add_argument("--images", required=True, help="folder or .zip of the images")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument("--table", default=str(ROOT / "benchmarks/results/facerec_306.csv"))
    parser.add_argument("--out", default="runs/facerec_306", help="folder for the runs")
    given = parser.parse_args()
    os.environ["KERAS_BACKEND"] = given.backend

    from benchmarks.table import append_row
    from training import train
    from training.recipe import load_recipe

    table = pathlib.Path(given.table)
    for seed in given.seeds:
        for name in given.models:
            key = {
                "model": name,
                "seed": str(seed),
                "epochs": str(given.epochs),
                "backend": given.backend,
                "precision": given.precision,
            }
            if any(key.items() <= row.items() for row in _rows(table)):
                continue
            model, arguments = MODELS[name]
            recipe = dataclasses.replace(
                load_recipe("facerec_small"),
                model=model,
                model_arguments=arguments,
                data=given.data,
                images=given.images,
                train_split="train",
                test_split="test",
                epochs=given.epochs,
                precision=given.precision,
                seed=seed,
            )
            results = train.run(recipe, pathlib.Path(given.out) / f"{name}_{seed}", verbose=2)
            append_row(
                table,
                COLUMNS,
                {
                    **results,
                    **key,
                    "hardware": given.hardware,
                },
            )


def _rows(table: pathlib.Path) -> list[dict]:
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
