"""A face model on several JAX processes, of one machine or many, through ``fit``.

    cd training/examples
    python multi_host_jax.py --coordinator localhost:1234 --processes 2 --process 1 &
    python multi_host_jax.py --coordinator localhost:1234 --processes 2 --process 0

``--mesh-model 2`` splits the class centres, too. Under Slurm or Open MPI, and on cloud TPUs, JAX
finds the three values out: give ``--processes 0`` alone. Without any it trains alone.

Every process reads the same list of images and gives ``fit`` its part of each batch
(``ClassParallel.batch_part``). All of them must take part in whatever computes with the weights,
also in gathering them; only the first writes.
"""

import argparse
import json
import os
import pathlib

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

import keras_hybrid as kh

CLASSES = 16


class Part(keras.utils.PyDataset):
    """This process's part of the batches of an epoch."""

    def __init__(self, images, labels, batch_size: int, part: slice):
        super().__init__()
        self.images, self.labels, self.batch_size, self.part = images, labels, batch_size, part
        self.epoch = -1
        self.on_epoch_end()

    def on_epoch_end(self):
        """Shuffle for the next epoch, alike in all processes."""
        self.epoch += 1
        self.order = np.random.default_rng(self.epoch).permutation(len(self.labels))

    def __len__(self):
        return len(self.labels) // self.batch_size

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size][self.part]
        return self.images[rows], self.labels[rows]


def build_model(classes: int) -> keras.Model:
    """Return a tiny model with a margin loss, compiled."""
    keras.utils.set_random_seed(0)  # the same first weights everywhere
    architecture = {"patch_size": 8, "dim": 16, "depth": 1, "num_heads": 2, "drop_path": 0.0}
    model = kh.create_model(
        "vit_ti16",
        input_shape=(16, 16, 3),
        classes=classes,
        classifier="cosine",
        classifier_activation=None,
        **architecture,
    )
    model.compile(
        keras.optimizers.AdamW(3e-3, global_clipnorm=2.0), loss=kh.losses.CosFace(scale=30.0)
    )
    return model


def main() -> None:
    """Train, and let the first process write down how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coordinator", help="HOST:PORT of the first process")
    parser.add_argument("--processes", type=int, help="number of processes; 0: find out")
    parser.add_argument("--process", type=int, help="number of this process, from 0")
    parser.add_argument(
        "--mesh-model", type=int, default=1, help="devices the classes are split over"
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/multi_host_jax"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16, help="of all processes together")
    given = parser.parse_args()
    keras.utils.set_random_seed(0)
    if given.processes is not None:  # before anything asks JAX for its devices
        keras.distribution.initialize(given.coordinator, given.processes or None, given.process)
    data = jax.device_count() // given.mesh_model
    mesh = kh.distribution.ClassParallel(data=data, model=given.mesh_model)
    keras.distribution.set_distribution(mesh)
    images, labels = kh.data.synthetic_identities(CLASSES, given.batch_size // 2, image_size=16)
    model = build_model(CLASSES)
    batches = Part(images, labels, given.batch_size, mesh.batch_part(given.batch_size))
    first = jax.process_index() == 0
    history = model.fit(
        batches, epochs=given.epochs, shuffle=False, verbose=2 if first else 0
    ).history
    # Of a matrix that is split over the processes, each has its rows only.
    weights = [multihost_utils.process_allgather(v.value, tiled=True) for v in model.weights]
    keras.distribution.set_distribution(None)
    if first:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "history.json").write_text(json.dumps(history))
        whole = build_model(CLASSES)
        whole.set_weights(weights)
        whole.save(given.out / "model.keras")


if __name__ == "__main__":
    main()
