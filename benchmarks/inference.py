"""Latency and throughput of a model by Keras and as SavedModel, LiteRT and ONNX, by batch.

    python benchmarks/inference.py --models facerec_small mobilefacenet

Each model's embedding is saved and exported once (files that are in ``--files`` already are taken
as they are; speed does not depend on training). Every runtime gets the same images in a process of
its own, and in turn; its output must equal that of Keras's ``predict_on_batch`` on the first
backend before anything is timed. A call is timed from a NumPy array to a NumPy array. Keras has two
ways on each backend asked for: ``predict_on_batch``, and the forward pass ``compiled`` as a user of
that backend would (``tf.function``, ``jax.jit``, ``torch.no_grad``).

A row for each model, runtime and batch is added to the CSV file: median and 90th percentile of the
milliseconds by the clock, the images a second of the median, the median in processor time and its
ratio to the peer's, ``keras.applications.MobileNetV2`` at the same size in the same run. A cell
whose calls would take more than the budget is left out; its row has the reason.
"""

import argparse
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

PEER = "MobileNetV2"
EXPORTED = {"saved_model": "", "litert": ".tflite", "onnx": ".onnx"}
KERAS = ("predict_on_batch", "compiled")
BATCHES = (1, 4, 16, 64, 256)
MARKERS = "os^Dv<>p"
COMPARED = 4  # images
# Largest accepted relative difference (of norms) from Keras: that of the export matrix's float32.
TOLERANCE = 1e-4

COLUMNS = (
    "model",
    "runtime",
    "backend",
    "batch",
    "milliseconds",
    "milliseconds_p90",
    "images_per_second",
    "cpu_milliseconds",
    "cpu_ratio",
    "calls",
    "left_out",
    "relative_difference",
    "image_size",
    "threads",
    "hardware",
    "commit",
    "command",
)


def make_model(name: str, size: int):
    """Return a model of the zoo, or the peer, up to its pooled features."""
    import keras

    import keras_hybrid as kh

    shape = (size, size, 3)
    if name == PEER:
        return keras.applications.MobileNetV2(
            input_shape=shape, include_top=False, weights=None, pooling="avg"
        )
    return kh.create_model(name, input_shape=shape, include_top=False, pooling="native")


def prepare(given: argparse.Namespace, folder: pathlib.Path) -> None:
    """Save and export the models that the folder lacks; write the images and Keras's answers."""
    import keras

    import keras_hybrid as kh

    exporters = {
        "saved_model": kh.export.to_saved_model,
        "litert": lambda model, path: kh.export.to_litert(model, path, batch_size=None),
        "onnx": kh.export.to_onnx,
    }
    shape = (max(given.batches), given.size, given.size, 3)
    images = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
    np.save(folder / "images.npy", images)
    for name in given.models:
        saved = folder / f"{name}_{given.size}.keras"
        if not saved.exists():
            make_model(name, given.size).save(saved)
        model = keras.saving.load_model(saved, compile=False)
        np.save(saved.with_suffix(".npy"), model.predict_on_batch(images[:COMPARED]))
        for runtime, suffix in EXPORTED.items():
            if runtime in given.runtimes and not saved.with_suffix(suffix).exists():
                exporters[runtime](model, saved.with_suffix(suffix))


def open_keras(path: pathlib.Path, runtime: str):
    """Return images → output as NumPy arrays, by one of Keras's own ways."""
    import keras
    from keras import ops

    import keras_hybrid  # noqa: F401  (registers the layers)
    from benchmarks.layer_forms import _compiled

    model = keras.saving.load_model(path, compile=False)
    if runtime == "predict_on_batch":
        return model.predict_on_batch
    forward = _compiled(model)
    return lambda images: ops.convert_to_numpy(forward(ops.convert_to_tensor(images)))


def measure(path: pathlib.Path, runtime: str, given: argparse.Namespace) -> dict:
    """Compare one runtime with Keras and time it in this process.

    Returns:
        ``difference`` from Keras, relative, and ``cells``: batch → times as of ``time_calls``, or
        the reason why the cell was left out.
    """
    from benchmarks.run_exported import LEAST_CALLS, open_file, time_calls

    if runtime in KERAS:
        run = open_keras(path, runtime)
    else:
        run, _ = open_file(path, given.threads)
    images = np.load(path.parent / "images.npy")
    expected = np.load(path.with_suffix(".npy"))
    difference = float(np.linalg.norm(run(images[:COMPARED]) - expected) / np.linalg.norm(expected))
    if not difference <= TOLERANCE:
        raise SystemExit(f"{path.name}, {runtime}: differs from Keras by {difference:.1e}.")
    cells, an_image = {}, 0.0
    for batch in sorted(given.batches):
        # A warm-up and the least number of calls, at the pace of the last batch.
        needed = (1 + LEAST_CALLS) * an_image * batch
        if needed > given.budget:
            cells[batch] = f"needs {needed:.3g} s, budget {given.budget:g} s"
            continue
        run(images[:batch])
        times = time_calls(run, images[:batch], given.seconds)
        an_image = np.median(times[:, 0]) / 1e3 / batch
        cells[batch] = times.tolist()
    return {"difference": difference, "cells": cells}


def start(path: pathlib.Path, runtime: str, backend: str, given: argparse.Namespace) -> dict:
    """Return what a fresh process measures."""
    command = [sys.executable, __file__, "--measure", str(path), "--runtimes", runtime]
    command += ["--backends", backend, "--threads", str(given.threads)]
    command += ["--batches", *map(str, given.batches)]
    command += ["--seconds", str(given.seconds), "--budget", str(given.budget)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(answer.splitlines()[-1])


def summarize(processes: list[dict], batch: int) -> dict:
    """Return the columns of one cell, from all processes of its runtime."""
    difference = max(process["difference"] for process in processes)
    cells = [process["cells"][str(batch)] for process in processes]
    row = {"batch": batch, "relative_difference": f"{difference:.1e}"}
    reasons = [cell for cell in cells if isinstance(cell, str)]
    if reasons:
        return row | {"left_out": reasons[0]}
    times = np.concatenate([np.array(cell) for cell in cells])
    middle, late = np.percentile(times[:, 0], (50, 90))
    return row | {
        "milliseconds": round(float(middle), 3),
        "milliseconds_p90": round(float(late), 3),
        "images_per_second": round(1e3 * batch / float(middle), 1),
        "cpu_milliseconds": round(float(np.median(times[:, 1])), 3),
        "calls": len(times),
    }


def with_ratios(rows: list[dict]) -> list[dict]:
    """Add to each row its processor time over the peer's in the same cell."""
    cell = ("runtime", "backend", "batch")
    peer = {tuple(r[c] for c in cell): r for r in rows if r["model"] == PEER}
    for row in rows:
        other = peer[tuple(row[c] for c in cell)]
        if "cpu_milliseconds" in row and "cpu_milliseconds" in other:
            row["cpu_ratio"] = round(row["cpu_milliseconds"] / other["cpu_milliseconds"], 3)
    return rows


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Draw images a second of processor time over the batch, a panel for each model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    models = list(dict.fromkeys(row["model"] for row in rows))
    drawing = Figure(figsize=(3.4 * len(models) + 1.6, 3.8), layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(1, len(models), squeeze=False, sharey=True)[0]
    runtimes = list(dict.fromkeys((row["runtime"], row["backend"]) for row in rows))
    for axes, model in zip(panels, models, strict=True):
        for (runtime, backend), marker in zip(runtimes, itertools.cycle(MARKERS), strict=False):
            curve = [
                (row["batch"], 1e3 * row["batch"] / row["cpu_milliseconds"])
                for row in rows
                if (row["model"], row["runtime"], row["backend"]) == (model, runtime, backend)
                and "cpu_milliseconds" in row
            ]
            name = f"{runtime}, {backend}" if backend else runtime
            axes.plot(*zip(*curve, strict=True), marker=marker, label=name)
        batches = sorted({row["batch"] for row in rows if "cpu_milliseconds" in row})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xticks(batches)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(title=model, xlabel="batch")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("images a second of processor time")
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside right", frameon=False)
    drawing.savefig(path, dpi=150)


def main() -> None:
    """Export, compare, time, add to the table and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["facerec_small", "mobilefacenet"])
    parser.add_argument(
        "--runtimes", nargs="+", choices=(*KERAS, *EXPORTED), default=[*KERAS, *EXPORTED]
    )
    parser.add_argument(
        "--backends", nargs="+", choices=("tensorflow", "jax", "torch"), default=["tensorflow"]
    )
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--size", type=int, default=112, help="height and width of the input")
    parser.add_argument("--files", type=pathlib.Path, help="folder that keeps the exported files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="processes for each runtime")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timed calls in a cell")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of the least calls")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument(
        "--table", type=pathlib.Path, default=ROOT / "benchmarks/results/inference.csv"
    )
    parser.add_argument("--measure", type=pathlib.Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["KERAS_BACKEND"] = given.backends[0]
    from benchmarks.processes import on_the_cpu

    os.environ |= on_the_cpu(given.threads)
    if given.measure:
        print(json.dumps(measure(given.measure, given.runtimes[0], given)))
        return

    from benchmarks.table import append_row
    from training.report import command, commit

    given.models = [name for name in given.models if name != PEER] + [PEER]
    ways = [(r, b) for r in KERAS if r in given.runtimes for b in given.backends]
    ways += [(r, "") for r in EXPORTED if r in given.runtimes]
    found = {(name, *way): [] for name in given.models for way in ways}
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.files or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prepare(given, folder)
        for _ in range(given.repeats):
            for (name, runtime, backend), processes in found.items():
                path = folder / f"{name}_{given.size}{EXPORTED.get(runtime, '.keras')}"
                processes.append(start(path, runtime, backend or given.backends[0], given))
    rows = with_ratios(
        [
            {"model": name, "runtime": runtime, "backend": backend} | summarize(processes, batch)
            for (name, runtime, backend), processes in found.items()
            for batch in sorted(given.batches)
        ]
    )
    for row in rows:
        row |= {
            "image_size": given.size,
            "threads": given.threads,
            "hardware": given.hardware,
            "commit": commit(),
            "command": command(),
        }
        print(*(row.get(column) for column in COLUMNS[:11]), flush=True)
        append_row(given.table, COLUMNS, row)
    plot(rows, given.table.with_suffix(".png"))


if __name__ == "__main__":
    main()
