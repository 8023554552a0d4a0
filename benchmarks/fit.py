r"""How fast ``model.fit`` trains, beside the same architecture in PyTorch or keras.applications.

    python benchmarks/fit.py --models facerec_small --image-size 64 --batch 16 --backend torch
    python benchmarks/fit.py --models resnet50 mobilenet_v2 --image-size 96 --backend jax
    python benchmarks/fit.py --models vit_p8s8 --batch 256 --backend jax --device cuda \
        --precision mixed_bfloat16 --compile --peak-tflops 989

Peers are the models of ``peers.py``. First the zoo's model takes the peer's weights, and both must
put out the same. Then the zoo's model, the peer and, with ``--compile``, the peer under
``torch.compile`` are measured in turn, every time in a fresh process. All train with AdamW and
cross-entropy on logits, with the same constants, on the same bytes, with the stochastic depth and
dropout that the model has. In ``mixed_bfloat16`` the peer runs under ``torch.autocast``. One row a
model and precision is added to the CSV file, with medians over the processes:

- ``ratio``: images a second of ``fit`` from memory over those of the peer, whose images are in
  memory, too; ``compiled_ratio`` likewise.
- ``step_ratio``: the peer's time for a step on one resident batch over ``train_on_batch``'s.
- ``files_ratio``: images a second of ``fit`` through ``kh.data.Batches`` from JPEG files (synthetic
  identities, of the model's image size) over those of ``fit`` from memory.
- ``input_milliseconds``: reading a batch from those files and doing nothing with it.
- ``peak_share``: with ``--peak-tflops``, the share of it that ``fit`` from memory reaches: three
  times the multiply-accumulates of a forward pass, two operations each.

For the networks that ``keras.applications`` has, too (``--models resnet50``), that one is the peer,
under the same ``fit`` on the same backend. In place of outputs, parameters are compared, which may
differ by a percent (biases before a batch normalisation): ``tests/applications/test_imagenet.py``
shows equal features. Ours normalises pixels inside, its ResNet-50 and MobileNetV2 do not.

The last row of each model, size, device, backend and precision is drawn into a figure beside the
table.

Where others share the core, give ``--clock process``: processor time of all threads instead of time
on the wall. With one thread on a CPU the two are equal, but for waiting.
"""

import argparse
import csv
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

COLUMNS = (
    "model",
    "peer",
    "ratio",
    "compiled_ratio",
    "step_ratio",
    "files_ratio",
    "images_per_second",
    "peer_images_per_second",
    "compiled_images_per_second",
    "files_images_per_second",
    "step_milliseconds",
    "peer_step_milliseconds",
    "input_milliseconds",
    "peak_share",
    "batch",
    "image_size",
    "backend",
    "precision",
    "jit_compile",
    "device",
    "threads",
    "workers",
    "clock",
    "repeats",
    "seed",
    "hardware",
    "commit",
    "command",
)

MODELS = ("facerec_small", "vit_p8s8", "cct_7_3x1", "cvt_13_32", "swin_tiny")
# Registered model → the same network in keras.applications.
KERAS = {
    "resnet50": "ResNet50",
    "efficientnet_b0": "EfficientNetB0",
    "efficientnet_v2_s": "EfficientNetV2S",
    "mobilenet_v2": "MobileNetV2",
}
PRECISIONS = ("float32", "mixed_bfloat16")
SIDES = ("zoo", "peer", "compiled")
CLASSES = 10
SEED = 0
LEARNING_RATE, WEIGHT_DECAY, EPSILON = 1e-4, 0.05, 1e-8
TOLERANCE = 1e-4
PARAMETER_TOLERANCE = 0.01
COLORS = {"tensorflow": "tab:orange", "jax": "tab:green", "torch": "tab:blue"}
FILL = {"float32": "full", "mixed_bfloat16": "none"}
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def zoo_model(name: str, size: int):
    """The zoo's model with a linear classifier, whose logits cross-entropy takes."""
    import keras_hybrid as kh

    return kh.create_model(name, input_shape=(size, size, 3), classes=CLASSES, classifier="dense")


def keras_model(name: str, size: int):
    """The same network of ``keras.applications``, which puts out logits, too."""
    import keras

    builder = getattr(keras.applications, KERAS[name])
    options = {"weights": None, "classes": CLASSES, "classifier_activation": None}
    return builder(input_shape=(size, size, 3), **options)


# --- the sides; each returns the seconds of its steps and epochs ----------------------------------


def check_outputs(name: str, given: argparse.Namespace) -> None:
    """Raise RuntimeError unless the zoo's model and the peer compute the same."""
    if name in KERAS:
        check_parameters(name, given)
        return
    import keras
    import numpy as np
    import torch

    import keras_hybrid as kh
    from benchmarks.peers import build_peer, load_facerec_small

    torch.manual_seed(SEED)
    peer = build_peer(name, given.size, CLASSES).eval()
    model = zoo_model(name, given.size)
    state = peer.network.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():  # biases of 0 and scales of 1 would hide what is mixed up
            tensor.add_(0.02 * torch.randn_like(tensor))
    if name == "facerec_small":
        load_facerec_small(model, state)
    else:
        kh.convert.load_torch_weights(model, state)
    images = np.random.default_rng(SEED).integers(0, 256, (2, given.size, given.size, 3), "uint8")
    with torch.no_grad():
        expected = peer(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()).numpy()
    found = keras.ops.convert_to_numpy(model(images.astype("float32"), training=False))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    if not error <= TOLERANCE:
        raise RuntimeError(f"{name}: model and peer differ by a relative {error:.1e}.")


def check_parameters(name: str, given: argparse.Namespace) -> None:
    """Raise RuntimeError unless the zoo's model has the parameters of keras.applications."""
    ours, theirs = (build(name, given.size).count_params() for build in (zoo_model, keras_model))
    if not abs(ours / theirs - 1) <= PARAMETER_TOLERANCE:
        raise RuntimeError(f"{name}: {ours:,} parameters, keras.applications has {theirs:,}.")


def measure_keras(name: str, given: argparse.Namespace, folder: pathlib.Path, build) -> dict:
    """Time ``train_on_batch`` and ``fit`` from memory; the zoo's model reads files as well."""
    import keras
    import numpy as np

    import keras_hybrid as kh

    class Clock(keras.callbacks.Callback):
        """Seconds of each epoch."""

        def __init__(self):
            super().__init__()
            self.seconds = []

        def on_epoch_begin(self, epoch, logs=None):
            self.start = now()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds.append(now() - self.start)

    now = CLOCKS[given.clock]
    keras.utils.set_random_seed(SEED)
    keras.config.set_dtype_policy(given.precision)
    model = build(name, given.size)
    model.compile(
        keras.optimizers.AdamW(LEARNING_RATE, WEIGHT_DECAY, epsilon=EPSILON),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile={"auto": "auto", "on": True, "off": False}[given.jit],
    )
    images, labels = (np.load(folder / f"{kind}.npy") for kind in ("images", "labels"))
    batch = images[: given.batch], labels[: given.batch]
    steps = timed(lambda: model.train_on_batch(*batch), given.steps, now)

    def epochs(*data, callbacks=(), **options):
        clock = Clock()
        callbacks = [*callbacks, clock]
        # The first epoch traces and compiles.
        model.fit(*data, epochs=1 + given.epochs, verbose=0, callbacks=callbacks, **options)
        return clock.seconds[1:]

    found = {"steps": steps, "epochs": epochs(images, labels, batch_size=given.batch)}
    if build is not zoo_model:
        return found
    batches = kh.data.Batches(
        kh.data.open_source(folder / "people"),
        batch_size=given.batch,
        image_size=given.size,
        workers=given.workers,
    )
    # As train.py does: Keras's own data set from ``batches`` can wait for TensorFlow's autotuner.
    on_tensorflow = keras.backend.backend() == "tensorflow"
    files = batches.to_tf_dataset() if on_tensorflow else batches
    found["files"] = epochs(files, shuffle=False, callbacks=[batches.callback()])
    found["input"] = reading = []
    for _ in range(given.epochs):
        start = now()
        for index in range(len(batches)):
            batches[index]
        reading.append((now() - start) / len(batches))
        batches.on_epoch_end()
    return found


def measure_peer(
    name: str, given: argparse.Namespace, folder: pathlib.Path, compiled: bool
) -> dict:
    """Time the peer's step on one batch, and its epochs over the images in memory."""
    import numpy as np
    import torch

    from benchmarks.peers import build_peer

    torch.manual_seed(SEED)
    if given.device == "cuda" and given.backend != "torch":
        # TensorFlow and JAX multiply float32 matrices in TF32 where a GPU has it, PyTorch does not.
        torch.set_float32_matmul_precision("high")
    model = build_peer(name, given.size, CLASSES).to(given.device).train()
    run = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=EPSILON
    )
    images, labels = (
        torch.from_numpy(np.load(folder / f"{kind}.npy")) for kind in ("images", "labels")
    )
    images, labels = images.permute(0, 3, 1, 2).contiguous(), labels.long()
    half = given.precision == "mixed_bfloat16"

    def step(images, labels):
        images, labels = (x.to(given.device, non_blocking=True) for x in (images, labels))
        with torch.autocast(given.device, torch.bfloat16, enabled=half):
            logits = run(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def epoch():
        total = 0.0
        for chosen in torch.randperm(len(images)).split(given.batch):
            total = total + step(images[chosen], labels[chosen])
        return total.item()  # waits for the device, as the logs of an epoch do

    batch = images[: given.batch], labels[: given.batch]
    now = CLOCKS[given.clock]
    return {
        "steps": timed(lambda: step(*batch).item(), given.steps, now),
        "epochs": timed(epoch, given.epochs, now),
    }


def timed(run, times: int, now) -> list[float]:
    """Seconds of ``times`` calls by the clock ``now``, after one that is not counted."""
    run()
    seconds = []
    for _ in range(times):
        start = now()
        run()
        seconds.append(now() - start)
    return seconds


# --- the processes, and the row -------------------------------------------------------------------


def in_a_process(
    side: str, name: str, given: argparse.Namespace, precision: str, folder: pathlib.Path
) -> dict:
    """Run ``side`` of this file in a fresh process and return what it found."""
    from benchmarks.processes import thread_variables

    options = {
        "size": given.size,
        "batch": given.batch,
        "steps": given.steps,
        "epochs": given.epochs,
        "precision": precision,
        "jit": given.jit,
        "device": given.device,
        "workers": given.workers,
        "clock": given.clock,
        "backend": given.backend,
    }
    environment = {**os.environ, "KERAS_BACKEND": given.backend, **thread_variables(given.threads)}
    if given.device == "cpu" or side == "check":
        # Outputs are compared on the CPU, whose float32 is not rounded to fewer bits.
        environment |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, __file__, "--measure", side, name, str(folder), json.dumps(options)],
        check=True,
        env=environment,
    )
    return json.loads((folder / "found.json").read_text())


def measure(side: str, name: str, folder: str, options: str) -> None:
    """What a process of its own does: measure a side and write down what it found."""
    given, out = argparse.Namespace(**json.loads(options)), pathlib.Path(folder)
    found: dict = {}
    if side == "check":
        check_outputs(name, given)
    elif side == "zoo":
        found = measure_keras(name, given, out, zoo_model)
    elif name in KERAS:
        found = measure_keras(name, given, out, keras_model)
    else:
        found = measure_peer(name, given, out, compiled=side == "compiled")
    (out / "found.json").write_text(json.dumps(found))


def write_images(given: argparse.Namespace, folder: pathlib.Path) -> None:
    """Write synthetic identities for ``steps`` batches: as arrays, and as JPEG files in folders."""
    import numpy as np
    from PIL import Image

    import keras_hybrid as kh

    count = given.batch * given.steps
    images, labels = kh.data.synthetic_identities(
        CLASSES, -(-count // CLASSES), given.size, seed=SEED
    )
    images, labels = images[:count], labels[:count]
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "people" / str(label) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=95)


def compare(name: str, given: argparse.Namespace) -> Iterator[dict]:
    """Check a model against its peer, then measure both in turn; a row for each precision."""
    import keras_hybrid as kh

    given.size = given.image_size or kh.model_info(name).input_shape[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_images(given, folder)
        in_a_process("check", name, given, "float32", folder)
        for precision in given.precision:
            seconds = _medians(name, given, precision, folder)
            yield _row(name, given, seconds) | {"precision": precision}


def _medians(name: str, given: argparse.Namespace, precision: str, folder: pathlib.Path) -> dict:
    """Side → kind of measurement → seconds."""
    found: dict = {side: {} for side in (SIDES if given.compile else SIDES[:2])}
    for _ in range(given.repeats):
        for side, kinds in found.items():
            for kind, seconds in in_a_process(side, name, given, precision, folder).items():
                kinds.setdefault(kind, []).append(statistics.median(seconds))
    return {
        side: {kind: statistics.median(values) for kind, values in kinds.items()}
        for side, kinds in found.items()
    }


def _row(name: str, given: argparse.Namespace, seconds: dict) -> dict:
    import keras_hybrid as kh
    from benchmarks.peers import PEERS

    zoo, peer = seconds["zoo"], seconds["peer"]
    images = given.batch * given.steps
    row = {
        "model": name,
        "peer": "keras.applications" if name in KERAS else PEERS[name][2],
        "ratio": round(peer["epochs"] / zoo["epochs"], 2),
        "step_ratio": round(peer["steps"] / zoo["steps"], 2),
        "files_ratio": round(zoo["epochs"] / zoo["files"], 2),
        "images_per_second": round(images / zoo["epochs"], 1),
        "peer_images_per_second": round(images / peer["epochs"], 1),
        "files_images_per_second": round(images / zoo["files"], 1),
        "step_milliseconds": round(zoo["steps"] * 1e3, 1),
        "peer_step_milliseconds": round(peer["steps"] * 1e3, 1),
        "input_milliseconds": round(zoo["input"] * 1e3, 1),
        "image_size": given.size,
    }
    if given.compile:
        compiled = seconds["compiled"]["epochs"]
        row["compiled_ratio"] = round(compiled / zoo["epochs"], 2)
        row["compiled_images_per_second"] = round(images / compiled, 1)
    if given.peak_tflops:
        operations = 6 * kh.model_info(name).macs * images / zoo["epochs"]
        row["peak_share"] = round(operations / (given.peak_tflops * 1e12), 3)
    return row


def plot(table: pathlib.Path) -> None:
    """Draw the last ratios of every model, size, device, backend and precision."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    key = ("peer", "model", "image_size", "device", "backend", "precision")
    with table.open(newline="") as file:
        last = {tuple(row[c] for c in key): row for row in csv.DictReader(file)}
    names = sorted({k[:3] for k in last}, reverse=True)
    drawing = Figure(figsize=(6.4, 1.4 + 0.4 * len(names)), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    kinds = sorted({k[3:] for k in last})
    for shift, (device, backend, precision) in zip(spread(len(kinds)), kinds, strict=True):
        rows = {k[:3]: row for k, row in last.items() if k[3:] == (device, backend, precision)}
        style = {"color": COLORS[backend], "fillstyle": FILL[precision], "linestyle": ""}
        for column, marker, peer in (("ratio", "o", ""), ("compiled_ratio", "s", ", compiled")):
            there = {k: float(row[column]) for k, row in rows.items() if row[column]}
            places = [names.index(k) + shift for k in there]
            if there:
                label = f"{backend}, {device}, {precision}{peer}"
                axes.plot([*there.values()], places, marker, label=label, markersize=5, **style)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), [f"{m}, {side} px\n/ {peer}" for peer, m, side in names])
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlabel="images a second of fit, as a multiple of the peer's")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    drawing.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=7)
    drawing.savefig(table.with_suffix(".png"), dpi=150)


def spread(count: int) -> list[float]:
    """Distances from a line at which ``count`` marks of that line do not hide each other."""
    return [0.5 * (i + 0.5) / count - 0.25 for i in range(count)]


def main() -> None:
    """Measure the models asked for and add them to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, help="registered, with a peer")
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS[:1])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--image-size", type=int, help="default: the model's")
    parser.add_argument("--steps", type=int, default=8, help="of an epoch, and timed alone")
    parser.add_argument("--epochs", type=int, default=2, help="timed in a process")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each side")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--jit", choices=("auto", "on", "off"), default="auto", help="jit_compile")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="threads that read files ahead")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--peak-tflops", type=float, help="of the device's matrix units")
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    parser.add_argument("--table", default=str(ROOT / "benchmarks/results/fit.csv"))
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(*given.measure)
        return

    os.environ["KERAS_BACKEND"] = given.backend
    import keras_hybrid as kh
    from benchmarks.peers import PEERS
    from benchmarks.table import append_row
    from training.report import command, commit

    known = {**PEERS, **KERAS}
    if unknown := [name for name in given.models if name not in known]:
        parser.error(f"--models: {', '.join(unknown)} has no peer; there are {', '.join(known)}.")
    if given.compile and (compiled := sorted(KERAS.keys() & given.models)):
        parser.error(f"--compile: the peer of {', '.join(compiled)} is not PyTorch's.")
    for name in given.models:
        size = kh.model_info(name).input_shape[0]
        if given.peak_tflops and given.image_size not in (None, size):
            parser.error(f"--peak-tflops: operations of {name} are known at {size} pixels only.")
    if given.steps < 3:
        parser.error(f"--steps must be at least 3, got {given.steps}.")
    if given.clock == "process" and (given.device != "cpu" or given.threads != 1):
        parser.error("--clock process is for one thread on a CPU.")
    same = {
        "batch": given.batch,
        "backend": given.backend,
        "jit_compile": given.jit,
        "device": given.device,
        "threads": given.threads,
        "workers": given.workers,
        "clock": given.clock,
        "repeats": given.repeats,
        "seed": SEED,
        "hardware": given.hardware,
        "commit": commit(),
        "command": command(),
    }
    for name in given.models:
        for row in compare(name, given):
            print(row | same, flush=True)
            append_row(pathlib.Path(given.table), COLUMNS, row | same)
    plot(pathlib.Path(given.table))


if __name__ == "__main__":
    main()
