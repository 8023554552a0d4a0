"""What quantization costs a face model: LFW accuracy and size of each kind of LiteRT file.

    python benchmarks/quantized_lfw.py runs/face/last.keras --pairs pairs.txt --pairs-images lfw/ \
        --calibration faces/

Each file is made from the same model, run by the LiteRT interpreter on every image of the pairs
(one crop, no mirror image) and judged by the same 10-fold protocol as the Keras model. One row a
kind is added to the CSV file.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

KINDS = (None, "float16", "dynamic", "int8")
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
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    runner = interpreter.get_signature_runner()
    (name,) = runner.get_input_details()
    (output,) = runner.get_output_details()

    def embed(images: np.ndarray) -> np.ndarray:
        images = np.asarray(images, "float32")
        return np.concatenate([runner(**{name: image[np.newaxis]})[output] for image in images])

    return embed


def main() -> None:
    """Measure every kind and add it to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--pairs-images", required=True)
    parser.add_argument("--calibration", required=True, help="images to calibrate int8 with")
    parser.add_argument("--calibration-images", help="where a .csv's files lie")
    parser.add_argument("--count", type=int, default=300, help="calibration images")
    parser.add_argument("--label", help="name of the model in the table")
    parser.add_argument("--table", default=str(ROOT / "benchmarks/results/quantized_lfw.csv"))
    given = parser.parse_args()

    import keras

    import keras_hybrid as kh
    from benchmarks.table import append_row
    from training.report import command, commit

    model = keras.models.load_model(given.model, compile=False)
    size = model.input_shape[1:3]
    pairs = kh.data.read_lfw_pairs(given.pairs, images=given.pairs_images)
    options = {} if given.calibration_images is None else {"images": given.calibration_images}
    source = kh.data.open_source(given.calibration, **options)
    rows = np.random.default_rng(0).permutation(len(source))[: given.count]
    images = np.stack([kh.data.files.resize_image(source.read(int(i)), size) for i in rows])
    common = {
        "model": given.label or model.name,
        "pairs": pathlib.Path(given.pairs).name,
        "calibration": len(images),
        "commit": commit(),
        "command": command(),
    }
    table = pathlib.Path(given.table)

    def add(kind: str, result, **more) -> None:
        append_row(
            table,
            COLUMNS,
            {
                **common,
                "kind": kind,
                "accuracy": round(result.accuracy, 5),
                "accuracy_std": round(result.accuracy_std, 5),
                "auc": round(result.auc, 5),
                **more,
            },
        )
        print(f"{kind:8} {result.accuracy:.2%} ± {result.accuracy_std:.2%} {more}", flush=True)

    keras_result = kh.evaluation.evaluate_pairs(model, pairs)
    add("keras", keras_result, size_bytes=pathlib.Path(given.model).stat().st_size)
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            report = kh.export.to_litert(
                model,
                pathlib.Path(folder) / f"{kind}.tflite",
                quantization=kind,
                representative_data=images.astype("float32"),
                output="embedding",
            )
            embedder = litert_embedder(pathlib.Path(report.path))
            result = kh.evaluation.evaluate_pairs(embedder, pairs, image_size=size)
            add(
                kind or "float32",
                result,
                size_bytes=report.size_bytes,
                smallest_cosine=round(report.cosine, 5),
            )


if __name__ == "__main__":
    main()
