"""Train tiny recipes on one device and on a mesh of eight; what the test compares, as JSON.

``python train_on_devices.py FOLDER``, in an environment where JAX has eight devices.
"""

import dataclasses
import json
import math
import pathlib
import re
import sys

import jax
import keras
import numpy as np

import keras_hybrid as kh
from keras_hybrid.layers import partial_margin
from tests.training.test_train import TINY, Stop, StopAt
from training import train
from training.find_learning_rate import sweep

FOLDER = pathlib.Path(sys.argv[1])
# 3 of 10 images of each of 14 identities are for testing, 42: four devices do not divide the last
# batch of 10.
RECIPE = dataclasses.replace(TINY, data="synthetic:14x10", test_fraction=0.3, epochs=3)
# A device's part of a step's classes, 18 of 24, holds a batch of 16.
SAMPLED = dataclasses.replace(RECIPE, data="synthetic:48x5", sampling_rate=0.75)
ON_MESH = {"mesh": "data=4,model=2"}
SIZES = (16, 12, 10)
MANY, DIM = 4000, 32
MESH_SHARDS = partial_margin._mesh_shards


def history(folder: pathlib.Path) -> list[dict]:
    return json.loads((folder / "checkpoint" / "latest.json").read_text())["history"]


def run(recipe, name: str) -> dict:
    results = train.run(recipe, FOLDER / name, verbose=0)
    return {"results": results, "history": history(FOLDER / name)}


class Look(keras.callbacks.Callback):
    """Notes how every variable is laid out."""

    def __init__(self):
        super().__init__()
        self.layouts = {}

    def on_train_end(self, logs=None):
        for v in [*self.model.variables, *self.model.optimizer.variables]:
            self.layouts[v.path] = str(v.value.sharding.spec)


def interrupted() -> dict:
    recipe = dataclasses.replace(RECIPE, **ON_MESH)
    train._tensorboard = lambda folder: [StopAt(7)]
    try:
        run(recipe, "broken")
    except Stop:
        train._tensorboard = lambda folder: []
        return run(recipe, "broken")
    raise AssertionError("it was not interrupted")


def layouts() -> dict[int, str]:
    """How batches of some sizes are laid out."""
    mesh = kh.distribution.ClassParallel(data=4, model=2)
    specs = (mesh.get_data_layout((size, 8, 8, 3)).backend_layout.spec for size in SIZES)
    return {size: [*spec][:1] for size, spec in zip(SIZES, specs, strict=True)}


def largest_exchange(sampling_rate: float) -> int:
    """Return the most numbers that devices exchange at once in a step of very many classes."""
    mesh = kh.distribution.ClassParallel(data=4, model=2)
    with mesh.scope():
        inputs = keras.Input((8,))
        head = kh.layers.PartialCosineClassifier(MANY, sampling_rate, name="predictions")
        model = kh.applications.MarginModel(inputs, head(keras.layers.Dense(DIM)(inputs)))
        model.compile("adam", loss=kh.losses.CosFace())
        model.optimizer.build(model.trainable_variables)
        groups = model.trainable_variables, model.non_trainable_variables
        groups += model.optimizer.variables, model.metrics_variables
        batch = np.zeros((16, 8), "float32"), np.arange(16, dtype="int32")
        batch = [jax.device_put(a, mesh.get_data_layout(a.shape).backend_layout) for a in batch]
        state = tuple([v.value for v in group] for group in groups)
        text = jax.jit(model.train_step).lower(state, tuple(batch)).compile().as_text()
    found = re.findall(r" = (.*) (?:all-|reduce-|collective-)[a-z-]+\(", text)
    shapes = [shape for types in found for shape in re.findall(r"\[([\d,]*)\]", types)]
    return max(math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes)


answer = {"interrupted": interrupted(), "layouts": layouts()}
answer["exchanges"] = [largest_exchange(rate) for rate in (1.0, 0.1)]
answer["sweeps"] = [
    sweep(recipe, 1e-5, 1e-2, 20).losses
    for recipe in (RECIPE, dataclasses.replace(RECIPE, **ON_MESH))
]
for name, recipe in (("full", RECIPE), ("sampled", SAMPLED)):
    partial_margin._mesh_shards = lambda: 2  # one device samples as two do
    answer[name] = run(recipe, name)
    partial_margin._mesh_shards = MESH_SHARDS
    look = Look()
    train._tensorboard = lambda folder, look=look: [look]
    answer[f"{name}_mesh"] = run(dataclasses.replace(recipe, **ON_MESH), f"{name}_mesh")
    train._tensorboard = lambda folder: []
    answer[f"{name}_split"] = {k: spec for k, spec in look.layouts.items() if "model" in spec}
(FOLDER / "answer.json").write_text(json.dumps(answer))
