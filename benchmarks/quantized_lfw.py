"""What quantization costs a face model: LFW accuracy and size of each kind of LiteRT file.

    python benchmarks/quantized_lfw.py runs/face/last.keras --pairs pairs.txt --pairs-images lfw/ \
        --calibration faces/
    python benchmarks/quantized_lfw.py mobilefacenet_relu6 --checkpoint mobilefacenet_relu6.pth \
        --pairs pairs.txt --pairs-images lfw/ --calibration faces/ \
        --kinds float32 int8 int8_mixed --float-layers embedding_norm global_conv

Each file is made from the same model, run by the LiteRT interpreter on every image of the pairs
(one crop, no mirror image) and judged by the same 10-fold protocol as the Keras model. One row a
kind is added to the CSV file, unless it is there already for the same label. Besides the kinds that
`keras_hybrid.export.to_litert` writes there are recipes of ai-edge-quantizer
(`quantizer_recipes.py`). `smallest_cosine` is that between embeddings of a file and of the Keras
model on eight calibration images.
"""

import argparse
import csv
import pathlib
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.quantizer_recipes import CALIBRATION, RECIPES, quantize  # noqa: E402
from benchmarks.run_exported import open_litert  # noqa: E402

EXPORTED = ("float32", "float16", "dynamic", "int8", "int8_cpu")
KINDS = ("keras", *EXPORTED)
COMPARED = 8
COLUMNS = (
    "model",
    "pairs",
    "kind",
    "accuracy",
    "accuracy_std",
    "auc",
    "size_bytes",
    "smallest_cosine",
    "calibration",
    "commit",
    "command",
)


def litert_embedder(path: pathlib.Path):
    """Return images (batch, height, width, 3) → embeddings (batch, dim) through the interpreter."""
    run, _ = open_litert(path, threads=1)

    def embed(images: np.ndarray) -> np.ndarray:
        return np.concatenate([run(image[np.newaxis]) for image in np.asarray(images, "float32")])

    return embed


def load(given: argparse.Namespace):
    """Return the model of a .keras file, or of a checkpoint of the original PyTorch code.

    It computes in float32 whatever it was trained in, as the files do that it is compared with.
    """
    import keras_hybrid as kh
    from keras_hybrid.export.preparation import in_float32

    if given.checkpoint is None:
        return in_float32(given.model)
    model = kh.create_model(given.model, include_top=False, pooling="native")
    kh.convert.load_torch_weights(model, given.checkpoint, family=kh.model_info(given.model).family)
    return model


def main() -> None:
    """Measure every kind that is missing and add it to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a .keras file, or with --checkpoint a registered name")
    parser.add_argument("--checkpoint", help="weights of the original PyTorch code")
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--pairs-images", required=True)
    parser.add_argument("--calibration", required=True, help="images to calibrate with")
    parser.add_argument("--calibration-images", help="where a .csv's files lie")
    parser.add_argument("--count", type=int, default=300, help="calibration images")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=(*KINDS, *RECIPES))
    parser.add_argument(
        "--float-layers",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="operators that kinds named …_mixed leave in float32",
    )
    parser.add_argument("--label", help="name of the model in the table")
    parser.add_argument("--table", default=str(ROOT / "benchmarks/results/quantized_lfw.csv"))
    given = parser.parse_args()

    import keras_hybrid as kh
    from benchmarks.table import append_row
    from training.report import command, commit

    model = load(given)
    label = given.label or model.name
    table = pathlib.Path(given.table)
    done = set()
    if table.exists():
        with table.open(newline="") as file:
            done = {row["kind"] for row in csv.DictReader(file) if row["model"] == label}
    kinds = [kind for kind in given.kinds if kind not in done]
    size = model.input_shape[1:3]
    pairs = kh.data.read_lfw_pairs(given.pairs, images=given.pairs_images)
    options = {} if given.calibration_images is None else {"images": given.calibration_images}
    source = kh.data.open_source(given.calibration, **options)
    rows = np.random.default_rng(0).permutation(len(source))[: given.count]
    images = np.stack([kh.data.files.resize_image(source.read(int(i)), size) for i in rows])
    images = images.astype("float32")

    def add(kind: str, result, calibration: int, **more) -> None:
        row = {
            "model": label,
            "pairs": pathlib.Path(given.pairs).name,
            "kind": kind,
            "accuracy": round(result.accuracy, 5),
            "accuracy_std": round(result.accuracy_std, 5),
            "auc": round(result.auc, 5),
            "calibration": calibration,
            "commit": commit(),
            "command": command(),
            **more,
        }
        append_row(table, COLUMNS, row)
        print(f"{kind:8} {result.accuracy:.2%} ± {result.accuracy_std:.2%} {more}", flush=True)

    def export(kind: str, path: pathlib.Path) -> None:
        kh.export.to_litert(
            model,
            path,
            quantization=None if kind == "float32" else kind,
            representative_data=images,
            output="embedding",
        )

    if "keras" in kinds:
        is_file = pathlib.Path(given.model).is_file()
        add(
            "keras",
            kh.evaluation.evaluate_pairs(model, pairs),
            len(images),
            size_bytes=pathlib.Path(given.model if is_file else given.checkpoint).stat().st_size,
        )
    expected = kh.applications.embedding_model(model).predict(images[:COMPARED], verbose=0)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for kind in (kind for kind in kinds if kind != "keras"):
            path = folder / f"{kind}.tflite"
            if kind in RECIPES:
                float32 = folder / "float32.tflite"
                if not float32.exists():
                    export("float32", float32)
                quantize(float32, path, kind, images, given.float_layers)
            else:
                export(kind, path)
            embedder = litert_embedder(path)
            found = embedder(images[:COMPARED])
            found /= np.linalg.norm(found, axis=1, keepdims=True)
            add(
                kind,
                kh.evaluation.evaluate_pairs(embedder, pairs, image_size=size),
                min(CALIBRATION, len(images)) if kind in RECIPES else len(images),
                size_bytes=path.stat().st_size,
                smallest_cosine=round(float((found * expected).sum(axis=1).min()), 5),
            )


if __name__ == "__main__":
    main()
