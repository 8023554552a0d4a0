"""A face model trained on a small set of photographs alone, verified on LFW.

Trains a recipe on every identity of the images given (5 % of each identity's images are held out,
to see that training works; nothing is chosen by them), judges it on LFW's View 1, and reports
View 2: by the usual 10-fold protocol, whose thresholds come from the other folds, and at the
threshold that View 1 gave. Two rows a run, without and with the mirror image, are added to a CSV
file. An interrupted run goes on when the same command is given again.

    python benchmarks/lfw_from_scratch.py --data faces.zip --lfw lfw.zip --epochs 20 \
        --precision mixed_bfloat16
    python benchmarks/lfw_from_scratch.py --model mobilefacenet --data faces.zip --lfw lfw.zip \
        --out runs/lfw_mobilefacenet

The LFW folder or archive holds pairs.txt (View 2) and pairsDevTest.txt (View 1).
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

COLUMNS = (
    "model",
    "identities",
    "images",
    "image_size",
    "seed",
    "epochs",
    "flip",
    "view1_accuracy",
    "view1_threshold",
    "accuracy",
    "accuracy_std",
    "accuracy_at_view1_threshold",
    "auc",
    "eer",
    "tar_at_far_1e-2",
    "tar_at_far_1e-3",
    "parameters",
    "seconds",
    "backend",
    "precision",
    "hardware",
    "commit",
    "command",
)


def main() -> None:
    """Train, verify and add to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder, .zip or .csv of identities")
    parser.add_argument("--lfw", required=True, help="folder or .zip of LFW with its pair lists")
    parser.add_argument("--recipe", default="facerec_small")
    parser.add_argument("--model", help="in place of the recipe's")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument("--table", default=str(ROOT / "benchmarks/results/lfw_from_scratch.csv"))
    parser.add_argument("--out", default="runs/lfw_from_scratch", help="folder of the run")
    given = parser.parse_args()
    os.environ["KERAS_BACKEND"] = given.backend

    import keras

    import keras_hybrid as kh
    from benchmarks.table import append_row
    from training import train
    from training.recipe import load_recipe

    recipe = load_recipe(given.recipe)
    recipe = dataclasses.replace(
        recipe,
        model=given.model or recipe.model,
        data=given.data,
        test_fraction=0.05,
        image_size=given.image_size,
        epochs=given.epochs,
        precision=given.precision,
        seed=given.seed,
    )
    out = pathlib.Path(given.out)
    results = train.run(recipe, out, verbose=2)
    model = keras.saving.load_model(out / "last.keras", compile=False)
    view1, view2 = (
        kh.data.read_lfw_pairs(f"{given.lfw}/{name}", images=given.lfw)
        for name in ("pairsDevTest.txt", "pairs.txt")
    )
    for flip in (False, True):
        development = kh.evaluation.evaluate_pairs(model, view1, flip=flip, folds=1)
        reported = kh.evaluation.evaluate_pairs(model, view2, flip=flip)
        fixed = kh.evaluation.evaluate_pairs(
            model, view2, flip=flip, threshold=development.threshold
        )
        print(f"{'with' if flip else 'without'} the mirror image: {reported}", flush=True)
        append_row(
            pathlib.Path(given.table),
            COLUMNS,
            {
                **results,
                "model": recipe.model,
                "identities": results["classes"],
                "image_size": recipe.image_size,
                "seed": recipe.seed,
                "flip": flip,
                "view1_accuracy": round(development.accuracy, 5),
                "view1_threshold": round(development.threshold, 5),
                "accuracy": round(reported.accuracy, 5),
                "accuracy_std": round(reported.accuracy_std, 5),
                "accuracy_at_view1_threshold": round(fixed.accuracy, 5),
                "auc": round(reported.auc, 5),
                "eer": round(reported.eer, 5),
                "tar_at_far_1e-2": round(reported.tar_at_far(1e-2), 5),
                "tar_at_far_1e-3": round(reported.tar_at_far(1e-3), 5),
                "backend": given.backend,
                "precision": given.precision,
                "hardware": given.hardware,
            },
        )


if __name__ == "__main__":
    main()
