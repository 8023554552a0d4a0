"""A published face checkpoint, converted, on LFW's View 2: is it as good here as it is there?

    python benchmarks/published_checkpoints.py mobilefacenet_relu6 mobilefacenet.pth --lfw lfw.zip \
        --published 0.9918 --backend jax

Converts the checkpoint with ``keras_hybrid.convert.load_torch_weights`` and judges the model by the
10-fold protocol, one crop, no mirror image. One row is added to the CSV file; run the command once
for each backend. The LFW folder or archive holds aligned images and pairs.txt.
"""

import argparse
import os
import pathlib
import platform
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

COLUMNS = (
    "model",
    "checkpoint",
    "pairs",
    "accuracy",
    "accuracy_std",
    "auc",
    "tar_at_far_1e-3",
    "published_accuracy",
    "seconds",
    "backend",
    "hardware",
    "commit",
    "command",
)


def main() -> None:
    """Convert, verify and add to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a name of keras_hybrid.list_models()")
    parser.add_argument("checkpoint", help="a .pth, .pt, .safetensors or .npz file")
    parser.add_argument("--lfw", required=True, help="folder or .zip of LFW with its pair lists")
    parser.add_argument("--published", type=float, help="the accuracy its authors give")
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument(
        "--table", default=str(ROOT / "benchmarks/results/published_checkpoints.csv")
    )
    given = parser.parse_args()
    os.environ["KERAS_BACKEND"] = given.backend

    import keras_hybrid as kh
    from benchmarks.table import append_row
    from training.report import command, commit

    model = kh.create_model(given.model, include_top=False, pooling="native")
    kh.convert.load_torch_weights(model, given.checkpoint)
    pairs = kh.data.read_lfw_pairs(pathlib.Path(given.lfw) / "pairs.txt", images=given.lfw)
    start = time.perf_counter()
    result = kh.evaluation.evaluate_pairs(model, pairs)
    seconds = time.perf_counter() - start
    append_row(
        pathlib.Path(given.table),
        COLUMNS,
        {
            "model": given.model,
            "checkpoint": pathlib.Path(given.checkpoint).name,
            "pairs": len(pairs),
            "accuracy": round(result.accuracy, 5),
            "accuracy_std": round(result.accuracy_std, 5),
            "auc": round(result.auc, 5),
            "tar_at_far_1e-3": round(result.tar_at_far(1e-3), 5),
            "published_accuracy": given.published,
            "seconds": round(seconds, 1),
            "backend": given.backend,
            "hardware": given.hardware,
            "commit": commit(),
            "command": command(),
        },
    )
    print(result)


if __name__ == "__main__":
    main()
