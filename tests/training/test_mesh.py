"""A mesh of eight virtual devices trains as one device does."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

import keras_hybrid as kh
from tests import cases
from tests.training.test_train import TINY
from training import train

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="a mesh needs JAX")


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": cases.xla_flags(8),
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
    }
    script = pathlib.Path(__file__).with_name("train_on_devices.py")
    subprocess.run([sys.executable, script, folder], env=environment, check=True)
    return json.loads((folder / "answer.json").read_text())


def assert_alike(first, second, names=("loss", "accuracy", "val_loss", "val_accuracy")):
    assert len(first["history"]) == len(second["history"]) == 3
    for one, other in zip(first["history"], second["history"], strict=True):
        for name in names:
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
    assert first["results"]["top1"] == second["results"]["top1"]


@pytest.mark.slow
@on_jax
@pytest.mark.parametrize("name", ["full", "sampled"])
def test_the_loss_curve_is_that_of_one_device(answer, name):
    assert answer[name]["history"][0]["loss"] > answer[name]["history"][2]["loss"] > 0
    assert_alike(answer[name], answer[f"{name}_mesh"])


@pytest.mark.slow
@on_jax
@pytest.mark.parametrize("name", ["full", "sampled"])
def test_centres_and_moments_are_split_by_classes_and_nothing_else_is(answer, name):
    paths, specs = zip(*answer[f"{name}_split"].items(), strict=True)
    assert len(paths) == 3 and all("predictions" in path and "centers" in path for path in paths)
    assert set(specs) == {"P('model', None)"} or set(specs) == {"PartitionSpec('model', None)"}


@pytest.mark.slow
@on_jax
def test_groups_of_devices_exchange_the_gradients_of_their_sample_alone(answer):
    full, sampled = answer["exchanges"]
    # Each of two parts of 4,000 classes, of 32 dimensions; a tenth of them.
    assert (full, sampled) == (2000 * 32, 200 * 32)


@pytest.mark.slow
@on_jax
def test_all_devices_share_out_a_batch_that_they_divide(answer):
    layouts = answer["layouts"]
    assert layouts == {"16": [["data", "model"]], "12": ["data"], "10": [None]}


@pytest.mark.slow
@on_jax
def test_a_run_on_a_mesh_continues_where_it_stopped(answer):
    # What is logged of the broken epoch's training is of the steps after the break.
    assert_alike(answer["interrupted"], answer["full"], ("val_loss", "val_accuracy"))


@pytest.mark.slow
@on_jax
def test_a_rate_is_looked_for_on_the_mesh(answer):
    one, mesh = answer["sweeps"]
    assert len(one) == 20 and mesh == pytest.approx(one, rel=1e-3)


@on_jax
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": 0}, "data must be a positive integer, got 0"),
        ({"data": 3, "model": 99}, "data=3 times model=99 needs 297 devices; there are"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kh.distribution.ClassParallel(**arguments)


@on_jax
def test_more_centres_than_fit_beside_each_other_on_one_device_are_made_split():
    # Keras makes weights of more than 250 MiB, times the devices, where they are to lie.
    with kh.distribution.ClassParallel().scope():
        head = kh.layers.CosineClassifier(1_100_000, kernel_initializer="ones", name="predictions")
        head.build((None, 60))
    assert head.centers.shape == (1_100_000, 60)


@on_jax
def test_the_only_process_gives_whole_batches():
    mesh = kh.distribution.ClassParallel()
    assert mesh.batch_part(6) == slice(0, 6)


@on_jax
def test_classes_that_the_mesh_does_not_divide_are_refused(tmp_path, monkeypatch):
    # One device here: what is refused, is refused before the mesh matters.
    monkeypatch.setattr(train, "distribution", lambda recipe: contextlib.nullcontext())
    recipe = dataclasses.replace(TINY, mesh="data=1,model=3")
    with pytest.raises(ValueError, match="must divide the number of identities, 4"):
        train.run(recipe, tmp_path, verbose=0)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX can")
def test_other_backends_say_what_they_lack(tmp_path):
    with pytest.raises(ValueError, match="ClassParallel needs the JAX backend"):
        train.run(dataclasses.replace(TINY, mesh="data=2"), tmp_path, verbose=0)
