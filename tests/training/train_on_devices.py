"""Train a tiny recipe on one device and on a mesh of eight; what the test compares, as JSON.

``python train_on_devices.py FOLDER``, in an environment where JAX has eight devices.
"""

import dataclasses
import json
import pathlib
import sys

import keras

import keras_hybrid as kh
from tests.training.test_train import TINY, Stop, StopAt
from training import train
from training.find_learning_rate import sweep

FOLDER = pathlib.Path(sys.argv[1])
# 3 of 10 images of each of 14 identities are for testing, 42: four devices do not divide the last
# batch of 10.
RECIPE = dataclasses.replace(TINY, data="synthetic:14x10", test_fraction=0.3, epochs=3)
SAMPLED = dataclasses.replace(RECIPE, data="synthetic:24x5", sampling_rate=0.75)
ON_MESH = {"mesh": "data=4,model=2"}
SIZES = (16, 12, 10)


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


answer = {"interrupted": interrupted(), "layouts": layouts()}
answer["sweeps"] = [
    sweep(recipe, 1e-5, 1e-2, 20).losses
    for recipe in (RECIPE, dataclasses.replace(RECIPE, **ON_MESH))
]
for name, recipe in (("full", RECIPE), ("sampled", SAMPLED)):
    answer[name] = run(recipe, name)
    look = Look()
    train._tensorboard = lambda folder, look=look: [look]
    answer[f"{name}_mesh"] = run(dataclasses.replace(recipe, **ON_MESH), f"{name}_mesh")
    train._tensorboard = lambda folder: []
    answer[f"{name}_split"] = {k: spec for k, spec in look.layouts.items() if "model" in spec}
(FOLDER / "answer.json").write_text(json.dumps(answer))
