"""Every model in every format: does the exported file run by itself, and is it equal to the model?

    python benchmarks/export_matrix.py --images faces.zip --models "facerec_small" "mobilefacenet*"

For each registered model and format, the L2-normalised embedding is exported, the file is run on
photographs by a process that does not import this package (`run_exported.py`), and its answers are
compared with the model's: unquantized files by the largest difference as a fraction of the largest
output, quantized ones by the smallest cosine between embeddings. LiteRT files may hold built-in
operators only. A row is added to the CSV file as soon as it is there, and rows that are there are
left out: the run may be broken off and begun again. What fails is a row with its reason; delete the
row to have it tried again.

Networks without trained weights are a poor subject for quantization, in both directions: unused
ranges, dead branches and embeddings that are nearly the same for all images. Therefore every weight
that begins as a constant (biases, gains, tables of positions) gets noise, and statistics of batch
normalisation are those of the calibration images; `--weights NAME=FILE` takes trained weights
instead. The column `cosine_between_images` says how far apart the model's embeddings of different
photographs are at all: where it is near 1, a cosine above the bar says little.
"""

import argparse
import csv
import multiprocessing
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

# The formats, and what is asked of each: a largest relative difference, or a smallest cosine.
DIFFERENCE = {"float32": 1e-4, "saved_model": 1e-4, "onnx": 1e-4}
COSINE = {"float16": 0.999, "dynamic": 0.99, "int8": 0.98, "int8_cpu": 0.98}
FORMATS = ("float32", "float16", "dynamic", "int8", "int8_cpu", "saved_model", "onnx")
KEY = ("model", "weights", "format", "threads")
COLUMNS = (
    *KEY,
    "passed",
    "reason",
    "relative_difference",
    "cosine",
    "cosine_between_images",
    "images",
    "calibration",
    "size_bytes",
    "milliseconds",
    "cpu_milliseconds",
    "operators",
    "export_seconds",
    "hardware",
    "commit",
    "command",
)
UNTRAINED = "untrained"
NOISE = 0.1
ADAPTED = 8  # images at a time


def main() -> None:
    """Measure what is missing in the table, each model in a process of its own."""
    given = arguments()
    import keras_hybrid as kh

    names = sorted({name for pattern in given.models for name in kh.list_models(pattern)})
    if not names:
        raise SystemExit(f"--models: no model matches {' '.join(given.models)}")
    if strange := sorted(set(given.weights) - set(names)):
        raise SystemExit(f"--weights: not among the models: {', '.join(strange)}")
    # Before any row: what is no model's fault would be in the table as such.
    kh.data.open_source(given.images, split=given.split)
    # A process for each model: what a model leaves in memory, or takes down with it, ends there.
    context = multiprocessing.get_context("spawn")
    for name in names:
        if not missing(given, name):
            continue
        process = context.Process(target=measure, args=(given, name))
        process.start()
        process.join()
        for format in missing(given, name):
            add(given, name, format, reason=f"the process ended with status {process.exitcode}")


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", required=True, help="photographs: a folder, .zip or .npz")
    parser.add_argument("--split", help="of the photographs: a sub-folder or an array's suffix")
    parser.add_argument("--models", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="trained weights: a .keras file, or a checkpoint of the original PyTorch code",
    )
    parser.add_argument("--count", type=int, default=16, help="photographs that are compared")
    parser.add_argument("--calibration", type=int, default=100, help="photographs for int8")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed calls of a file")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument(
        "--table", type=pathlib.Path, default=ROOT / "benchmarks/results/export.csv"
    )
    given = parser.parse_args()
    for entry in given.weights:
        name, _, file = entry.partition("=")
        if not name or not pathlib.Path(file).is_file():
            parser.error(f"--weights must be NAME=FILE of a file that exists, received {entry!r}")
    given.weights = dict(entry.split("=", 1) for entry in given.weights)
    return given


def key(given: argparse.Namespace, name: str, format: str) -> tuple[str, ...]:
    """Return what tells a row of the table from all others."""
    weights = pathlib.Path(given.weights[name]).name if name in given.weights else UNTRAINED
    return name, weights, format, str(given.threads)


def missing(given: argparse.Namespace, name: str) -> list[str]:
    """Return the formats of a model that are not yet in the table."""
    there = set()
    if given.table.exists():
        with given.table.open(newline="") as file:
            there = {tuple(row[column] for column in KEY) for row in csv.DictReader(file)}
    return [format for format in given.formats if key(given, name, format) not in there]


def add(given: argparse.Namespace, name: str, format: str, *, reason: str = "", **more) -> None:
    """Add a row to the table; what has a reason has not passed."""
    from benchmarks.table import append_row
    from training.report import command, commit

    row = {
        **dict(zip(KEY, key(given, name, format), strict=True)),
        "passed": not reason,
        "reason": " ".join(reason.split()),
        **more,
        "hardware": given.hardware,
        "commit": commit(),
        "command": command(),
    }
    append_row(given.table, COLUMNS, row)
    print(f"{name} {format}: {reason or 'passed'} {more}", flush=True)


def measure(given: argparse.Namespace, name: str) -> None:
    """Build a model and measure its missing formats."""
    import keras

    import keras_hybrid as kh

    keras.utils.set_random_seed(0)
    model = load(given.weights.get(name), name)
    source = kh.data.open_source(given.images, split=given.split)
    rows = np.random.default_rng(0).permutation(len(source))[: given.count + given.calibration]
    photographs = np.stack(
        [kh.data.files.resize_image(source.read(int(row)), model.input_shape[1:3]) for row in rows]
    ).astype("float32")
    images, calibration = np.split(photographs, [given.count])
    if name not in given.weights:
        stir(model, calibration[:32])
    embedder = kh.applications.embedding_model(model)
    expected = embedder.predict(images, batch_size=1, verbose=0)
    between = (expected @ expected.T)[np.triu_indices(len(expected), 1)]
    facts = {
        "images": len(images),
        "calibration": len(calibration),
        "cosine_between_images": round(float(between.mean()), 3),
    }
    for format in missing(given, name):
        try:
            found = export_and_run(given, model, format, images, calibration, expected)
        except Exception as error:  # of whatever kind, it is this row's result
            found = {"reason": f"{type(error).__name__}: {error}"[:500]}
        add(given, name, format, **facts, **found)


def load(weights: str | None, name: str):
    """Return the model, with trained weights if there are any.

    It computes in float32 whatever it was trained in, as the files do that it is compared with.
    """
    import keras_hybrid as kh
    from keras_hybrid.export.preparation import in_float32

    if weights is not None and weights.endswith(".keras"):
        return in_float32(weights)  # of the image size that it was trained at
    model = kh.create_model(name, include_top=False, pooling="native")
    if weights is not None:
        kh.convert.load_torch_weights(model, weights, family=kh.model_info(name).family)
    return model


def stir(model, images: np.ndarray) -> None:
    """Make an untrained model as fit for comparison as can be."""
    import keras

    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        value = keras.ops.convert_to_numpy(variable.value)
        if value.min() == value.max():
            variable.assign(value + generator.normal(0, NOISE, value.shape))
    adapt_normalization(model, images)


def adapt_normalization(model, images: np.ndarray) -> None:
    """Make the statistics of every batch normalisation those of the images.

    Variances below a quarter of their layer's mean become that: a channel that the few images
    hardly move would be blown up on others, from layer to layer, which training does not leave so.
    """
    import keras

    from keras_hybrid.layers import DropPath

    kinds = {keras.layers.Dropout: "rate", DropPath: "rate"}
    layers = model._flatten_layers()
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    former = [(layer, "momentum", layer.momentum) for layer in norms] + [
        (layer, attribute, getattr(layer, attribute))
        for layer in layers
        for kind, attribute in kinds.items()
        if isinstance(layer, kind)
    ]
    for layer, attribute, _ in former:
        setattr(layer, attribute, 0.0)
    # A model keeps all that its layers put out until it is through: a few images at a time.
    for count, some in enumerate(np.split(images, range(ADAPTED, len(images), ADAPTED))):
        for layer in norms:
            layer.momentum = count / (count + 1)  # the mean of all so far
        model(some, training=True)
    for layer, attribute, value in former:
        setattr(layer, attribute, value)
    for layer in norms:
        variance = keras.ops.convert_to_numpy(layer.moving_variance.value)
        layer.moving_variance.assign(np.maximum(variance, variance.mean() / 4))


def export_and_run(
    given: argparse.Namespace, model, format: str, images, calibration, expected
) -> dict[str, object]:
    """Export, run the file in a process of its own, and return a row's figures."""
    import keras_hybrid as kh

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if format == "saved_model":
            report = kh.export.to_saved_model(model, folder / "model", output="embedding")
        elif format == "onnx":
            report = kh.export.to_onnx(model, folder / "model.onnx", output="embedding")
        else:
            report = kh.export.to_litert(
                model,
                folder / "model.tflite",
                quantization=None if format == "float32" else format,
                representative_data=calibration,
                output="embedding",
            )
        np.save(folder / "images.npy", images)
        command = [sys.executable, "-I", str(ROOT / "benchmarks/run_exported.py")]
        command += [str(report.path), str(folder / "images.npy"), str(folder / "answers.npz")]
        command += ["--threads", str(given.threads), "--seconds", str(given.seconds)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            lines = finished.stderr.strip().splitlines() or [f"status {finished.returncode}"]
            return {"reason": f"the file does not run: {lines[-1]}"[:500]}
        with np.load(folder / "answers.npz") as answers:
            actual, times = answers["outputs"], answers["milliseconds"]
    difference = float(np.abs(actual - expected).max() / np.abs(expected).max())
    lengths = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((actual * expected).sum(axis=1) / lengths).min())
    return {
        "reason": judge(format, report.operators, difference, cosine),
        "relative_difference": f"{difference:.2g}",
        "cosine": round(cosine, 5),
        "size_bytes": report.size_bytes,
        "milliseconds": round(float(np.median(times[:, 0])), 3),
        "cpu_milliseconds": round(float(np.median(times[:, 1])), 3),
        "operators": sum(report.operators.values()),
        "export_seconds": round(report.seconds, 1),
    }


def judge(format: str, operators, difference: float, cosine: float) -> str:
    """Return why a file has not passed, or an empty string."""
    if format not in ("saved_model", "onnx"):
        # Built-in operators have names in capitals; TensorFlow's own and custom ones do not.
        foreign = [name for name in operators if name != name.upper()]
        if foreign:
            return f"operators that are not built in: {', '.join(foreign)}"
    if format in DIFFERENCE and not difference <= DIFFERENCE[format]:
        return f"relative difference {difference:.2g} above {DIFFERENCE[format]:g}"
    if format in COSINE and not cosine >= COSINE[format]:
        return f"cosine {cosine:.4f} below {COSINE[format]:g}"
    return ""


if __name__ == "__main__":
    main()
