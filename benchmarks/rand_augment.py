"""RandAugment by Pillow, by Keras and by KerasCV: milliseconds for a batch, side by side.

    pip install --no-deps keras-cv==0.9.0 keras-core
    KERAS_BACKEND=tensorflow python benchmarks/rand_augment.py

Two operations on each image, but neither the same ones nor of one strength:
``keras_hybrid.data.RandAugment`` (Pillow) at magnitude 9 of 10, Keras's layer with ``factor=0.3``
and KerasCV's with ``magnitude=0.3``, both of 1 and each scale its own. Pillow applies both
operations always; KerasCV leaves each out once in eleven times, its default. Pillow and KerasCV's
layer, in a ``tf.function``, draw operations for each image; Keras's, compiled by
``keras_hybrid.data.LayerAugmentation``, once for the batch. The three take turns on the same
batch; the median is of processor time, so that other work on the machine counts little.
"""

import argparse
import os
import pathlib
import platform
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
COLUMNS = (
    "image_size",
    "batch_size",
    "implementation",
    "operations",
    "cpu_milliseconds",
    "ratio",
    "images_per_second",
    "rounds",
    "hardware",
    "commit",
    "command",
)


def implementations(size: int) -> dict:
    """Return functions of (images, labels, seed) by name."""
    import keras
    import keras_cv
    import tensorflow as tf

    import keras_hybrid as kh

    pillow = kh.data.RandAugment(magnitude=9, probability=1)
    layer = kh.data.LayerAugmentation([keras.layers.RandAugment((0, 255), num_ops=2, factor=0.3)])
    per_image = keras_cv.layers.RandAugment((0, 255), augmentations_per_image=2, magnitude=0.3)
    compiled = tf.function(lambda images: per_image(images))
    return {
        "Pillow": lambda images, labels, seed: pillow(images, seed),
        "Keras": lambda images, labels, seed: layer(images, labels, seed),
        "KerasCV": lambda images, labels, seed: compiled(tf.constant(images)),
    }


def main() -> None:
    """Time, print and add to the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--hardware", default=f"{os.cpu_count()} cores, {platform.machine()}")
    table = ROOT / "benchmarks/results/rand_augment.csv"
    parser.add_argument("--table", type=pathlib.Path, default=table)
    given = parser.parse_args()

    import keras

    from benchmarks.table import append_row
    from training.report import command, commit

    if keras.backend.backend() != "tensorflow":
        parser.error("KerasCV's layer runs on TensorFlow: set KERAS_BACKEND=tensorflow.")
    for size, batch in ((32, 128), (112, 64), (224, 32)):
        images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3))
        images, labels = images.astype("float32"), np.zeros(batch, "int64")
        functions = implementations(size)
        times: dict[str, list[float]] = {name: [] for name in functions}
        for seed in range(given.rounds + 2):
            for name, function in functions.items():
                start = time.process_time()
                function(images, labels, seed)
                if seed >= 2:  # the first calls compile
                    times[name].append(1e3 * (time.process_time() - start))
        medians = {name: float(np.median(values)) for name, values in times.items()}
        for name, median in medians.items():
            row = {
                "image_size": size,
                "batch_size": batch,
                "implementation": name,
                "operations": "a batch" if name == "Keras" else "an image",
                "cpu_milliseconds": round(median, 2),
                "ratio": round(median / medians["Pillow"], 2),
                "images_per_second": round(1e3 * batch / median),
                "rounds": given.rounds,
                "hardware": given.hardware,
                "commit": commit(),
                "command": command(),
            }
            append_row(given.table, COLUMNS, row)
            print(*(row[column] for column in COLUMNS[:7]), flush=True)


if __name__ == "__main__":
    main()
