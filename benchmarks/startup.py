"""How long until a model is there and trains: importing, building, the first step, beside Keras's.

    python benchmarks/startup.py --backend tensorflow
    python benchmarks/startup.py --backend tensorflow --first-step --only resnet50

Every measurement is a fresh process, ours and the peer's in turn. For the import it is a new
interpreter; for a model, a fork of a process that has imported Keras and done nothing else. One
model of 1000 classes is built in it, so that whatever the backend compiles for it counts. A row for
the import and one for each pair is added to the CSV file, with medians over the processes by the
clock and in processor time. The ratio and the verdict are of processor time, which a busy machine
hardly changes; one thread makes it what a core of its own would take.

- ``import``: at most 0.2 s over ``import keras``.
- ``build``: no longer than the comparable model of ``keras.applications``; ``comparable`` says what
  is alike.
- ``first_step``, if asked for: ``fit`` of a model that is built and compiled, with AdamW on one
  batch of two images, so nearly all of it is tracing and compiling; the bar is the same.
"""

import argparse
import csv
import gc
import importlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

IMPORTS = ("keras", "keras_hybrid")
IMPORT_SECONDS = 0.2

# Ours → (the peer in keras.applications, why these two).
PAIRS = {
    "resnet50": ("ResNet50", "the same network"),
    "efficientnet_b0": ("EfficientNetB0", "the same network"),
    "efficientnet_v2_s": ("EfficientNetV2S", "the same network"),
    "mobilenet_v2": ("MobileNetV2", "the same network"),
    "cct_7_3x1": ("MobileNet", "number of layers and of parameters"),
    "facerec_small": ("MobileNet", "number of layers and of parameters"),
    "swin_tiny": ("ConvNeXtTiny", "number of parameters, stages and blocks"),
    "vit_p8s8": ("ConvNeXtSmall", "number of layers"),
}

COLUMNS = (
    "measure",
    "ours",
    "peer",
    "comparable",
    "ratio",
    "bar_met",
    "seconds",
    "peer_seconds",
    "cpu_seconds",
    "peer_cpu_seconds",
    "layers",
    "peer_layers",
    "weights",
    "peer_weights",
    "parameters",
    "peer_parameters",
    "processes",
    "backend",
    "threads",
    "hardware",
    "commit",
    "command",
)


def timed(call: Callable) -> tuple[Any, tuple[float, float]]:
    """Return what a call returns, and its seconds by the clock and in processor time."""
    # Looking through all of TensorFlow's objects takes 0.2 s, whoever happens to make it due.
    gc.collect()
    start, start_cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, (time.perf_counter() - start, time.process_time() - start_cpu)


def import_both() -> dict:
    """Import Keras, then this package, in this process; return the seconds of each."""
    return {name: timed(lambda n=name: importlib.import_module(n))[1] for name in IMPORTS}


def build(name: str) -> dict:
    """Build a model, ours or of ``keras.applications``; return the seconds and its size."""
    import keras

    import keras_hybrid as kh

    if name in PAIRS:
        model, seconds = timed(lambda: kh.create_model(name, classes=1000))
    else:
        model, seconds = timed(lambda: getattr(keras.applications, name)(weights=None))
    return {"build": seconds, **_size(model)}


def first_step(name: str) -> dict:
    """Fit a model, ours or of ``keras.applications``, to one batch; return what `build` does."""
    import keras
    import numpy as np

    import keras_hybrid as kh

    if name in PAIRS:
        model = kh.create_model(name, classes=1000)
    else:
        model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss=loss)
    images = np.random.default_rng(0).uniform(0, 255, (2, *model.input_shape[1:]))
    labels = np.arange(2)
    _, seconds = timed(lambda: model.fit(images, labels, batch_size=2, verbose=0))
    return {"first_step": seconds, **_size(model)}


def _size(model) -> dict:
    return {
        "layers": len(model.layers),
        "weights": len(model.weights),
        "parameters": model.count_params(),
    }


def import_anew() -> dict:
    """Return what a new interpreter measures of the imports."""
    command = [sys.executable, __file__, "--measure-import"]
    # Installed packages are compiled, so that this one is, too, from the second time on.
    own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=own).stdout
    return json.loads(answer.splitlines()[-1])


def medians(processes: list[dict], label: str) -> tuple[float, float]:
    """Return the medians of a duration by the clock and in processor time, in seconds."""
    clock, processor = zip(*(process[label] for process in processes), strict=True)
    return statistics.median(clock), statistics.median(processor)


def import_row(processes: list[dict]) -> dict:
    """Return the row of ``import keras_hybrid`` after ``import keras``."""
    seconds, cpu = medians(processes, "keras_hybrid")
    keras_seconds, keras_cpu = medians(processes, "keras")
    return {
        "measure": "import",
        "ours": "keras_hybrid",
        "peer": "keras",
        "comparable": f"at most {IMPORT_SECONDS} s over the peer",
        "ratio": round(cpu / keras_cpu, 3),
        "bar_met": cpu <= IMPORT_SECONDS,
        "seconds": round(seconds, 3),
        "peer_seconds": round(keras_seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "peer_cpu_seconds": round(keras_cpu, 3),
        "processes": len(processes),
    }


def pair_row(measure: str, name: str, ours: list[dict], peers: list[dict]) -> dict:
    """Return the row of a pair of models; ``measure`` is ``"build"`` or ``"first_step"``."""
    peer, comparable = PAIRS[name]
    seconds, cpu = medians(ours, measure)
    peer_seconds, peer_cpu = medians(peers, measure)
    row = {
        "measure": measure,
        "ours": name,
        "peer": peer,
        "comparable": comparable,
        "ratio": round(cpu / peer_cpu, 3),
        "bar_met": cpu <= peer_cpu,
        "seconds": round(seconds, 3),
        "peer_seconds": round(peer_seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "peer_cpu_seconds": round(peer_cpu, 3),
        "processes": len(ours),
    }
    for count in ("layers", "weights", "parameters"):
        row |= {count: ours[0][count], f"peer_{count}": peers[0][count]}
    return row


def plot(table: pathlib.Path) -> None:
    """Draw the ratios of the newest rows of every pair and backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["measure"] == "build"]
    newest = {(row["ours"], row["backend"]): float(row["ratio"]) for row in rows}
    names = [name for name in reversed(PAIRS) if name in {ours for ours, _ in newest}]
    drawing = Figure(figsize=(6.4, 3.8), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    for backend, marker in (("tensorflow", "o"), ("jax", "s"), ("torch", "^")):
        points = [(newest[n, backend], n) for n in names if (n, backend) in newest]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, [names.index(n) for n in y], marker, label=backend)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), [f"{name}\n/ {PAIRS[name][0]}" for name in names])
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlabel="processor time of building, as a multiple of the peer's")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    drawing.savefig(table.with_suffix(".png"), dpi=150)


def main() -> None:
    """Measure the pairs asked for and add them to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--first-step", action="store_true", help="measure the first step instead")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="processes for each model")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument(
        "--table", type=pathlib.Path, default=ROOT / "benchmarks/results/startup.csv"
    )
    parser.add_argument("--measure-import", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure_import:
        print(json.dumps(import_both()))
        return
    os.environ["KERAS_BACKEND"] = given.backend
    from benchmarks.processes import fresh_processes, on_the_cpu

    os.environ |= on_the_cpu(given.threads)

    from benchmarks.table import append_row
    from training.report import command, commit

    measure = first_step if given.first_step else build
    imports = []
    ours, peers = ({name: [] for name in given.only} for _ in range(2))
    with fresh_processes("keras") as pool:
        for _ in range(given.repeats):
            if not given.first_step:
                imports.append(import_anew())
            for name in given.only:
                ours[name].append(pool.submit(measure, name).result())
                peers[name].append(pool.submit(measure, PAIRS[name][0]).result())
    rows = [import_row(imports)] if imports else []
    rows += [pair_row(measure.__name__, name, ours[name], peers[name]) for name in given.only]
    for row in rows:
        row |= {
            "backend": given.backend,
            "threads": given.threads,
            "hardware": given.hardware,
            "commit": commit(),
            "command": command(),
        }
        print(*(row.get(column) for column in COLUMNS[:10]), flush=True)
        append_row(given.table, COLUMNS, row)
    plot(given.table)


if __name__ == "__main__":
    main()
