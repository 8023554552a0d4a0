"""How time and memory grow with one quantity at a time, beside what theory allows.

    python benchmarks/scaling.py --backend torch

A step (training by default) of small models is measured while the batch, the depth, the number of
tokens, the side of the image or the number of classes grows and all else stays. Every point is a
process of its own, and the values of a case take turns. The exponent is the slope of a straight
line through the logarithms, by least squares, with its standard error; fixed costs make it smaller,
so ``last_exponent``, between the two largest values, is given beside it.

Two rows a case are added to the CSV file: ``time`` is the median of the processor time of a step in
milliseconds, ``memory`` the peak of resident memory in megabytes beyond what the process held
before the model was built. ``exceeds`` says that the exponent is more than its error and 0.1 above
``theory``, the largest exponent that the operations of the model have:

- batch, depth and number of classes: 1;
- tokens: 1 within windows and neighbourhoods, 2 (beside terms of 1) in global attention;
- side of the image: 2 for convolutions, and 4 where the pixels become tokens of global attention.

The last rows of every case are drawn into one figure.
"""

import argparse
import csv
import dataclasses
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

MARGIN = 0.1
QUANTITIES = ("batch", "depth", "tokens", "side", "classes")
MEASURES = {"time": "processor time of a step, ms", "memory": "peak of resident memory, MB"}

COLUMNS = (
    "model",
    "quantity",
    "measure",
    "exponent",
    "error",
    "theory",
    "exceeds",
    "last_exponent",
    "values",
    "measured",
    "step",
    "steps",
    "repeats",
    "backend",
    "threads",
    "hardware",
    "commit",
    "command",
)


# --- the models, each a function of the growing quantity → (model, batch, loss) -------------------


def _classifier(model, batch: int):
    import keras

    return model, batch, keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _vit(side: int = 64, depth: int = 4, batch: int = 8):
    import keras_hybrid as kh

    model = kh.applications.ViT(
        input_shape=(side, side, 3), patch_size=8, dim=96, depth=depth, num_heads=3, classes=10
    )
    return _classifier(model, batch)


def _facerec_small(side: int = 32, depth: int = 5, batch: int = 4):
    import keras_hybrid as kh

    model = kh.applications.FaceRecSmall(input_shape=(side, side, 3), depth=depth, classes=100)
    return model, batch, kh.losses.CosFace(scale=30.0)


def _cct(side: int = 32, batch: int = 2):
    import keras_hybrid as kh

    model = kh.create_model("cct_2_3x2", input_shape=(side, side, 3), classes=10)
    return _classifier(model, batch)


def _nat(tokens: int):
    import keras_hybrid as kh

    side = 4 * round(tokens**0.5)
    model = kh.applications.NAT(
        input_shape=(side, side, 3), dim=32, depths=(2,), num_heads=(2,), classes=10
    )
    return _classifier(model, 2)


def _swin(tokens: int):
    import keras_hybrid as kh

    side = 4 * round(tokens**0.5)
    model = kh.applications.Swin(
        input_shape=(side, side, 3), dim=32, depths=(2,), num_heads=(2,), classes=10
    )
    return _classifier(model, 4)


def _mobilefacenet(side: int):
    import keras_hybrid as kh

    model = kh.create_model("mobilefacenet", input_shape=(side, side, 3), classes=100)
    return model, 2, kh.losses.CosFace(scale=30.0)


def _keras_mobilenet_v2(side: int):
    import keras

    model = keras.applications.MobileNetV2(
        input_shape=(side, side, 3), weights=None, classes=100, classifier_activation=None
    )
    return _classifier(model, 2)


def _cosine_classifier(classes: int):
    import keras

    import keras_hybrid as kh

    embedding = keras.Input((256,))
    model = keras.Model(embedding, kh.layers.CosineClassifier(classes)(embedding))
    return model, 32, kh.losses.CosFace()


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of which one quantity grows.

    Attributes:
        make: The quantity's value → (model, batch size, loss).
        values: Values of the quantity, rising.
        theory: Largest exponent that time and memory may have.
    """

    make: Callable
    values: tuple[int, ...]
    theory: float


BATCHES, DEPTHS = (8, 16, 32, 64), (2, 4, 8, 16)
# 49 tokens fit a window 7 × 7; the sides are multiples of it, so that every window is full.
WINDOWED = (196, 784, 1764, 3136)
SIDES = (64, 96, 128, 192)

# (model, quantity) → case.
CASES = {
    ("vit", "batch"): Case(lambda n: _vit(batch=n), BATCHES, 1),
    ("facerec_small", "batch"): Case(lambda n: _facerec_small(batch=n), BATCHES, 1),
    ("vit", "depth"): Case(lambda n: _vit(depth=n), DEPTHS, 1),
    ("facerec_small", "depth"): Case(lambda n: _facerec_small(depth=n, batch=16), DEPTHS, 1),
    ("vit", "tokens"): Case(
        lambda n: _vit(side=8 * round(n**0.5), batch=4), (64, 144, 256, 576), 2
    ),
    ("nat", "tokens"): Case(_nat, WINDOWED, 1),
    ("swin", "tokens"): Case(_swin, WINDOWED, 1),
    ("facerec_small", "side"): Case(lambda n: _facerec_small(side=n), (32, 48, 64, 96), 4),
    ("cct", "side"): Case(lambda n: _cct(side=n), (32, 64, 96, 128), 4),
    ("mobilefacenet", "side"): Case(_mobilefacenet, SIDES, 2),
    ("keras_mobilenet_v2", "side"): Case(_keras_mobilenet_v2, SIDES, 2),
    # From where a matrix of centres is no longer kept by the C library when it is freed (32 MiB):
    # new pages make the step across that size 2.8 times as long for twice the classes.
    ("cosine_classifier", "classes"): Case(_cosine_classifier, (32768, 65536, 131072, 262144), 1),
}


# --- measuring ------------------------------------------------------------------------------------


def measure(key: tuple[str, str], value: int, step: str, steps: int) -> dict[str, float]:
    """Return the milliseconds and megabytes of a case's step at one value, in this process."""
    import keras

    import keras_hybrid  # noqa: F401
    from benchmarks.processes import peak_megabytes

    # What the process holds before: libraries, and what they load for their first step.
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()]
    small = keras.Sequential([*layers, keras.layers.Dense(2)])
    small.compile("sgd", "mse")
    small.train_on_batch(np.zeros((2, 8, 8, 3)), np.zeros((2, 2)))
    before = peak_megabytes()
    model, batch, loss = CASES[key].make(value)
    model.compile("sgd", loss)
    random = np.random.default_rng(0)
    x = random.uniform(0, 255, (batch, *model.input_shape[1:])).astype("float32")
    y = random.integers(0, model.output_shape[-1], batch)

    def run():
        return model.train_on_batch(x, y) if step == "train" else model.predict_on_batch(x)

    run()
    seconds = []
    for _ in range(steps):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return {"time": 1e3 * statistics.median(seconds), "memory": peak_megabytes() - before}


def fit_power_law(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Fit y = factor · x^exponent by least squares on the logarithms.

    Args:
        x: At least three positive values, not all equal.
        y: As many, positive.

    Returns:
        (exponent, its standard error, factor).
    """
    x, y = np.log(x), np.log(y)
    spread = np.sum((x - x.mean()) ** 2)
    exponent = np.sum((x - x.mean()) * (y - y.mean())) / spread
    offset = y.mean() - exponent * x.mean()
    residuals = y - offset - exponent * x
    error = np.sqrt(np.sum(residuals**2) / (len(x) - 2) / spread)
    return float(exponent), float(error), float(np.exp(offset))


def row(key: tuple[str, str], measure: str, measured: Sequence[float]) -> dict:
    """Return the row of a case: its fit beside theory."""
    case = CASES[key]
    exponent, error, _ = fit_power_law(case.values, measured)
    last = np.diff(np.log(measured[-2:])) / np.diff(np.log(case.values[-2:]))
    return {
        "model": key[0],
        "quantity": key[1],
        "measure": measure,
        "exponent": round(exponent, 2),
        "error": round(error, 2),
        "theory": case.theory,
        "exceeds": exponent > case.theory + error + MARGIN,
        "last_exponent": round(last.item(), 2),
        "values": " ".join(map(str, case.values)),
        "measured": " ".join(f"{y:.4g}" for y in measured),
    }


def plot(table: pathlib.Path) -> None:
    """Draw the last rows of every case: a column of panels a quantity, with the fitted lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    with table.open(newline="") as file:
        last = {(r["model"], r["quantity"], r["measure"]): r for r in csv.DictReader(file)}
    quantities = [q for q in QUANTITIES if any(key[1] == q for key in last)]
    drawing = Figure(figsize=(3.1 * len(quantities), 6.4), layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(2, len(quantities), squeeze=False)
    for line, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        line[0].set_ylabel(label)
        for axes, quantity in zip(line, quantities, strict=True):
            rows = [r for key, r in last.items() if key[1:] == (quantity, measure)]
            for r, marker in zip(rows, "os^D", strict=False):
                x, y = (np.array(r[c].split(), float) for c in ("values", "measured"))
                exponent, error, factor = fit_power_law(x, y)
                text = f"{r['model']}: {exponent:.2f} ± {error:.2f} (≤ {r['theory']})"
                (fitted,) = axes.plot(x, factor * x**exponent, linewidth=1)
                axes.plot(x, y, marker, color=fitted.get_color(), markersize=4, label=text)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xlabel({"side": "side of the image, pixels"}.get(quantity, quantity))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
            axes.set_xticks(sorted({float(x) for r in rows for x in r["values"].split()}))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.tick_params(which="both", labelsize=7)
            axes.tick_params(axis="x", labelrotation=60)
            axes.grid(alpha=0.3)
            axes.margins(y=0.15 + 0.1 * len(rows))  # above the curves the legend
            axes.legend(frameon=False, fontsize=6.5, loc="upper left")
    drawing.savefig(table.with_suffix(".png"), dpi=150)


def main() -> None:
    """Measure the cases asked for, add them to the table and draw it."""
    names = sorted({model for model, _ in CASES})
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--quantities", nargs="+", choices=QUANTITIES, default=QUANTITIES)
    parser.add_argument("--step", choices=("train", "inference"), default="train")
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="torch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="timed steps in a process")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each value")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument(
        "--table", type=pathlib.Path, default=ROOT / "benchmarks/results/scaling.csv"
    )
    given = parser.parse_args()
    os.environ["KERAS_BACKEND"] = given.backend
    from benchmarks.processes import fresh_processes, on_the_cpu

    os.environ |= on_the_cpu(given.threads)

    from benchmarks.table import append_row
    from training.report import command, commit

    # Keras looks for TensorFlow's types when it compiles a model, whatever the backend.
    with fresh_processes("keras", "tensorflow") as pool:
        for key, case in CASES.items():
            if key[0] not in given.models or key[1] not in given.quantities:
                continue
            found = {value: [] for value in case.values}
            for _ in range(given.repeats):
                for value in case.values:
                    task = pool.submit(measure, key, value, given.step, given.steps)
                    found[value].append(task.result())
            for what in MEASURES:
                middle = [statistics.median(p[what] for p in found[v]) for v in case.values]
                line = row(key, what, middle) | {
                    "step": given.step,
                    "steps": given.steps,
                    "repeats": given.repeats,
                    "backend": given.backend,
                    "threads": given.threads,
                    "hardware": given.hardware,
                    "commit": commit(),
                    "command": command(),
                }
                print(*(line[column] for column in COLUMNS[:10]), flush=True)
                append_row(given.table, COLUMNS, line)
    plot(given.table)


if __name__ == "__main__":
    main()
