"""Small face models beside MobileFaceNet and EfficientNet-B0, in one run: which is fastest?

    python benchmarks/phone_latency.py --images faces.zip --files runs/latency --sizes 48 64 112

Exports each model's embedding as LiteRT, float32 and quantized in each way (files that are in the
folder already are taken as they are; speed does not depend on training), and runs them on XNNPACK
with one image a call. The files take turns, round by round, so that a disturbance of the machine
meets all of them. A row for each model, size, kind and number of threads is added to the CSV file:
median and quartiles of the milliseconds by the clock, their median in processor time (of all
threads; at one thread, what a call takes on a core of its own), and the ratios of the medians to
MobileFaceNet's at the same size.

Where `lfw_from_scratch.csv` has accuracies of two or more of these networks, trained on equal data,
they are drawn against the latency.
"""

import argparse
import csv
import itertools
import os
import pathlib
import platform
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
RESULTS = ROOT / "benchmarks" / "results"

REFERENCE = "mobilefacenet"
MODELS = (
    "facerec_small",
    "facerec_mobile",
    "efficientvit_face_small",
    REFERENCE,
    "efficientnet_b0_face",
)
KINDS = {"float32": "o", "dynamic": "^", "int8": "s", "int8_cpu": "D"}  # and their markers
WARM_UP = 3
Key = tuple[str, int, str]
# What must be equal for accuracies to be comparable; a smaller image is a way to be faster.
BUDGET = ("identities", "images", "epochs", "seed", "flip")
COLUMNS = (
    "model",
    "size",
    "kind",
    "threads",
    "milliseconds",
    "quartile1",
    "quartile3",
    "ratio",
    "cpu_milliseconds",
    "cpu_ratio",
    "calls",
    "size_bytes",
    "hardware",
    "commit",
    "command",
)


def export_missing(given: argparse.Namespace) -> dict[Key, pathlib.Path]:
    """Return the file of each (model, size, kind), exported where it is not there yet."""
    given.files.mkdir(parents=True, exist_ok=True)
    files = {
        (model, size, kind): given.files / f"{model}_{size}_{kind}.tflite"
        for model in given.models
        for size in given.sizes
        for kind in KINDS
    }
    for model, size in itertools.product(given.models, given.sizes):
        kinds = [kind for kind in KINDS if not files[model, size, kind].exists()]
        if kinds:
            _export(given, model, size, {kind: files[model, size, kind] for kind in kinds})
    return files


def _export(given: argparse.Namespace, model: str, size: int, files: dict) -> None:
    import keras_hybrid as kh

    source = kh.data.open_source(given.images)
    rows = np.random.default_rng(0).permutation(len(source))[: given.calibration]
    images = np.stack([kh.data.files.resize_image(source.read(int(i)), size) for i in rows])
    built = kh.create_model(model, input_shape=(size, size, 3), include_top=False, pooling="native")
    for kind, file in files.items():
        kh.export.to_litert(
            built,
            file,
            quantization=None if kind == "float32" else kind,
            representative_data=images,
            output="embedding",
        )


def time_files(
    files: dict[Key, pathlib.Path], threads: int, rounds: int, calls: int
) -> dict[Key, np.ndarray]:
    """Return the milliseconds of all calls of each file; in a round each file has its turn.

    Returns:
        Arrays (calls, 2): by the clock, and in processor time.
    """
    from ai_edge_litert.interpreter import Interpreter

    generator = np.random.default_rng(0)
    interpreters = {}
    for key, file in files.items():
        interpreter = Interpreter(model_path=str(file), num_threads=threads)
        interpreter.allocate_tensors()
        details = interpreter.get_input_details()[0]
        image = generator.uniform(0, 255, details["shape"]).astype("float32")
        interpreter.set_tensor(details["index"], image)
        for _ in range(WARM_UP):
            interpreter.invoke()
        interpreters[key] = interpreter
    times: dict[Key, list[np.ndarray]] = {key: [] for key in files}
    for _ in range(rounds):
        for key, interpreter in interpreters.items():
            for _ in range(calls):
                start = np.array([time.perf_counter(), time.process_time()])
                interpreter.invoke()
                times[key].append([time.perf_counter(), time.process_time()] - start)
    return {key: 1e3 * np.array(values) for key, values in times.items()}


def accuracies(table: pathlib.Path, models: tuple[str, ...]) -> dict[tuple[str, int], float]:
    """Return LFW's accuracy of each (model, size) of the largest group trained on equal data.

    Of rows of one network the last counts: it is by the present recipe.
    """
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["model"] in models and row["flip"] == "False"
        ]

    def budget(row):
        return [row[column] for column in BUDGET]

    groups = [
        {(row["model"], int(row["image_size"])): float(row["accuracy"]) for row in group}
        for _, group in itertools.groupby(sorted(rows, key=budget), key=budget)
    ]
    return max(groups, key=len, default={})


def plot(rows: list[dict], found: dict[tuple[str, int], float], figure: pathlib.Path) -> None:
    """Draw accuracy against the latency at one thread; the frontier is what nothing dominates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    points = sorted(
        (float(row["milliseconds"]), -100 * found[network], network, row["kind"])
        for row in rows
        if (network := (row["model"], int(row["size"]))) in found and str(row["threads"]) == "1"
    )
    colors = {network: f"C{i}" for i, network in enumerate(found)}
    best: list[tuple[float, float]] = []
    for x, negative, network, kind in points:
        axes.plot(x, -negative, KINDS[kind], color=colors[network], markersize=7)
        if not best or -negative > best[-1][1]:
            best.append((x, -negative))
    if best:
        best.append((points[-1][0], best[-1][1]))
        axes.plot(*zip(*best, strict=True), drawstyle="steps-post", color="0.6", zorder=0)
    for (model, size), color in colors.items():
        axes.plot([], [], "o", color=color, label=f"{model}, {size} × {size}")
    for kind, marker in KINDS.items():
        axes.plot([], [], marker, color="0.4", label=kind)
    axes.plot([], [], color="0.6", label="frontier")
    axes.set(
        xlabel="milliseconds a photograph, one thread",
        ylabel="LFW View 2, % (equal training data)",
        xscale="log",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.margins(x=0.08, y=0.2)
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, ncols=2, fontsize=8)
    drawing.savefig(figure, dpi=150)


def main() -> None:
    """Export, time, add to the table and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", required=True, help="photographs to calibrate int8 with")
    parser.add_argument(
        "--files", type=pathlib.Path, required=True, help="folder for the exported files"
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"with {REFERENCE}")
    parser.add_argument("--sizes", type=int, nargs="+", default=(112,), help="sides of the input")
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=10, help="of a model in a round")
    parser.add_argument("--calibration", type=int, default=50, help="photographs")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument("--table", type=pathlib.Path, default=RESULTS / "phone_latency.csv")
    given = parser.parse_args()
    if REFERENCE not in given.models:
        parser.error(f"--models must have {REFERENCE}, which the others are compared with")

    from benchmarks.table import append_row
    from training.report import command, commit

    files = export_missing(given)
    rows = []
    for threads in given.threads:
        times = time_files(files, threads, given.rounds, given.calls)
        for (model, size, kind), values in times.items():
            quartile1, median, quartile3 = np.percentile(values[:, 0], (25, 50, 75))
            reference = np.median(times[REFERENCE, size, kind], axis=0)
            ratio, cpu_ratio = np.median(values, axis=0) / reference
            rows.append(
                {
                    "model": model,
                    "size": size,
                    "kind": kind,
                    "threads": threads,
                    "milliseconds": round(float(median), 3),
                    "quartile1": round(float(quartile1), 3),
                    "quartile3": round(float(quartile3), 3),
                    "ratio": round(float(ratio), 3),
                    "cpu_milliseconds": round(float(np.median(values[:, 1])), 3),
                    "cpu_ratio": round(float(cpu_ratio), 3),
                    "calls": len(values),
                    "size_bytes": files[model, size, kind].stat().st_size,
                    "hardware": given.hardware,
                    "commit": commit(),
                    "command": command(),
                }
            )
    for row in rows:
        append_row(given.table, COLUMNS, row)
        print(*(row[column] for column in COLUMNS[:10]), flush=True)
    found = accuracies(RESULTS / "lfw_from_scratch.csv", tuple(given.models))
    found = {network: found[network] for network in found if network[1] in given.sizes}
    if len(found) > 1:
        figure = given.table.with_suffix(".png")
        plot(rows, found, figure)
        print(figure)
    else:
        print("No figure: LFW's accuracies on equal data are there for", end=" ")
        print(", ".join(f"{model} at {size}" for model, size in found) or "none of these networks")


if __name__ == "__main__":
    main()
