import contextlib
import csv
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid import data
from keras_hybrid.applications.kprpe import ALIGNED_LANDMARKS
from keras_hybrid.data.files import encode_image
from tests import cases
from tests.data.test_recordio import insightface, picture, write
from training import checkpoint, report, run_table, train
from training.checkpoint import verified_stages
from training.model import build_model, build_optimizer
from training.recipe import EXPORTS, Recipe

ROOT = pathlib.Path(__file__).resolve().parents[2]

TINY = Recipe(
    model="vit_ti16",
    model_arguments={
        "patch_size": 8,
        "dim": 16,
        "depth": 1,
        "num_heads": 2,
        "drop_path": 0.3,
        "dropout": 0.1,
    },
    data="synthetic:4x20",
    image_size=16,
    batch_size=16,
    epochs=2,
    warmup_epochs=1,
    learning_rate=3e-3,
    validation_every=1,
    checkpoint_steps=2,
)


class Stop(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    """Ends a run as abruptly as Python can, after the callbacks before it."""

    def __init__(self, step):
        super().__init__()
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Stop


def test_insightfaces_files_are_training_data_and_pairs(tmp_path):
    pytest.importorskip("PIL.Image")
    write(tmp_path, *insightface([0, 0, 0, 1, 1, 1]), classes=2)
    images = [picture(i) for i in range(20)]
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((images, [True, False] * 5), 2))
    recipe = dataclasses.replace(
        TINY, data=str(tmp_path), pairs=str(tmp_path / "lfw.bin"), test_fraction=1 / 3
    )
    images, test = train.load_data(recipe)
    assert images.labels.tolist() == [0, 0, 1, 1] and test.labels.tolist() == [0, 1]
    assert images.images.shape == (4, 16, 16, 3)
    pairs = train.load_pairs(recipe)
    assert len(pairs) == 10 and pairs.read(pairs.right[1])[0, 0, 0] == 3


def train_until(recipe, out, monkeypatch, stop_at=None):
    """Run a recipe's training alone; returns (weights, history)."""
    images, test = train.load_data(recipe)
    keras.utils.set_random_seed(recipe.seed)
    classes = len(set(images.labels.tolist()))
    model = build_model(recipe, classes, len(images.labels) // recipe.batch_size)
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])  # it imports TensorFlow
    fit = type(model).fit
    if stop_at is not None:

        def stopped_fit(self, *args, callbacks, **kwargs):
            return fit(self, *args, callbacks=[*callbacks, StopAt(stop_at)], **kwargs)

        monkeypatch.setattr(type(model), "fit", stopped_fit)
    try:
        history, _ = train.fit(
            recipe,
            model,
            images,
            test,
            out,
            settings=dataclasses.asdict(recipe),
            restart=False,
            verbose=0,
        )
    finally:
        monkeypatch.setattr(type(model), "fit", fit)
    return [keras.ops.convert_to_numpy(v) for v in model.weights], history


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """TINY, trained without an interruption: its folder, weights and history."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        return out, *train_until(TINY, out, patch)


@pytest.mark.parametrize(
    ("stop_at", "optimizer", "accumulated"),
    [(3, "adamw", 1), (5, "adamw", 1), (7, "muon", 1), (5, "muon", 2)],
)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path, monkeypatch, request, stop_at, optimizer, accumulated
):
    """With dropout, drop path, augmentation, warm-up: order, schedule and randomness go on."""
    changes = {"optimizer": optimizer, "gradient_accumulation_steps": accumulated}
    recipe = dataclasses.replace(TINY, remat=accumulated > 1, **changes)
    if recipe == TINY:
        _, expected, history = request.getfixturevalue("whole_run")
    else:
        expected, history = train_until(recipe, tmp_path / "whole", monkeypatch)
    with pytest.raises(Stop):
        train_until(recipe, tmp_path / "broken", monkeypatch, stop_at)
    resumed, resumed_history = train_until(recipe, tmp_path / "broken", monkeypatch)
    # Steps since the last checkpoint are computed anew, so equality holds wherever it stopped.
    for a, b in zip(expected, resumed, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert [row["epoch"] for row in resumed_history] == [row["epoch"] for row in history] == [0, 1]


def test_several_steps_an_execution_train_the_same_model_also_when_resumed(
    whole_run, tmp_path, monkeypatch
):
    """Four steps an epoch in executions of three and one; a checkpoint is due after two."""
    recipe = dataclasses.replace(TINY, steps_per_execution=3)
    if keras.backend.backend() == "torch":
        with pytest.raises(ValueError, match="steps_per_execution must be 1 with the PyTorch"):
            train.run(recipe, tmp_path, verbose=0)
        return
    _, expected, _ = whole_run
    found, history = train_until(recipe, tmp_path / "whole", monkeypatch)
    with pytest.raises(Stop):
        train_until(recipe, tmp_path / "broken", monkeypatch, stop_at=3)
    state = json.loads((tmp_path / "broken" / "checkpoint" / "latest.json").read_text())
    assert (state["epoch"], state["batch"]) == (1, 3)
    resumed, _ = train_until(recipe, tmp_path / "broken", monkeypatch)
    for a, b, c in zip(expected, found, resumed, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(c, a, rtol=1e-5, atol=1e-6)
    assert len(history) == 2 and all(row["images_per_second"] > 0 for row in history)
    model = build_model(recipe, 4, 4)
    assert model.steps_per_execution == 3
    assert model.get_compile_config().get("steps_per_execution", 1) == 1


@pytest.mark.any_backend
def test_settings_with_tuples_are_the_same_when_read_again(tmp_path):
    arguments = {**TINY.model_arguments, "input_shape": (16, 16, 3)}
    recipe = dataclasses.replace(TINY, model_arguments=arguments, epochs=1)
    first, again = (train.run(recipe, tmp_path, verbose=0) for _ in range(2))
    assert again["loss"] == pytest.approx(first["loss"])


def test_a_finished_run_is_not_trained_again(whole_run, tmp_path, monkeypatch):
    folder, first, _ = whole_run
    again, history = train_until(TINY, shutil.copytree(folder, tmp_path / "run"), monkeypatch)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(history) == 2


def test_a_run_with_other_settings_is_not_continued(whole_run, tmp_path, monkeypatch):
    folder = shutil.copytree(whole_run[0], tmp_path / "run")
    with pytest.raises(ValueError, match="other settings"):
        train_until(dataclasses.replace(TINY, seed=5), folder, monkeypatch)


def test_a_run_is_continued_with_other_settings_that_change_nothing_of_it(
    whole_run, tmp_path, monkeypatch
):
    folder, first, _ = whole_run
    folder = shutil.copytree(folder, tmp_path / "run")
    changed = {"checkpoint_steps": 7, "export": "onnx", "patience": 9, "workers": 3}
    changed["verification_sets"] = {"LFW": "lfw.bin"}
    again, history = train_until(dataclasses.replace(TINY, **changed), folder, monkeypatch)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(history) == 2


@pytest.mark.any_backend
def test_a_run_from_before_a_setting_had_a_name_is_continued(tmp_path, monkeypatch):
    """Where the setting has its default: without it, the same was computed."""
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])
    recipe = dataclasses.replace(TINY, epochs=1)
    before = train.run(recipe, tmp_path, verbose=0)
    pointer = tmp_path / "checkpoint" / "latest.json"
    state = json.loads(pointer.read_text())
    assert state["fingerprint"].pop("remat") is False
    pointer.write_text(json.dumps(state))
    assert train.run(recipe, tmp_path, verbose=0)["loss"] == pytest.approx(before["loss"])
    with pytest.raises(ValueError, match=r"other settings.*remat.*False"):
        train.run(dataclasses.replace(recipe, remat=True), tmp_path, verbose=0)


def write_people(root, names, images):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(images):
            content = encode_image(np.full((16, 16, 3), 40 * number + index, np.uint8))
            (root / name / f"{index}.png").write_bytes(content)


@pytest.mark.any_backend
def test_a_run_is_not_continued_with_other_images(tmp_path, monkeypatch):
    """Classes would get each other's names, and trained images would be tested."""
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])
    write_people(tmp_path / "faces", ["ann", "bob", "cem"], 8)
    recipe = dataclasses.replace(TINY, data=str(tmp_path / "faces"), epochs=1)
    train.run(recipe, tmp_path / "run", verbose=0)
    recipe = dataclasses.replace(recipe, epochs=1)
    recipe = dataclasses.replace(recipe, data=os.path.relpath(tmp_path / "faces") + "/")
    train.run(recipe, tmp_path / "run", verbose=0)  # the same, and the same folder
    (tmp_path / "faces" / "ann").rename(tmp_path / "faces" / "zoe")
    with pytest.raises(ValueError, match=r"other settings \(.*3 classes, .* training and .* test"):
        train.run(recipe, tmp_path / "run", verbose=0)
    # A run from before this was kept is continued.
    pointer = tmp_path / "run" / "checkpoint" / "latest.json"
    state = json.loads(pointer.read_text())
    del state["fingerprint"]["content_of_data"]
    pointer.write_text(json.dumps(state))
    train.run(recipe, tmp_path / "run", verbose=0)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("names", "images", "message"),
    [
        (["ann", "bob"], 1, "test_fraction=0.2 holds none of .* no class has more than one image"),
        (["ann"], 8, "has one class, 'ann', and training needs two"),
    ],
)
def test_data_that_cannot_be_trained_or_tested_are_refused(tmp_path, names, images, message):
    write_people(tmp_path / "faces", names, images)
    recipe = dataclasses.replace(TINY, data=str(tmp_path / "faces"))
    with pytest.raises(ValueError, match=message):
        train.run(recipe, tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.any_backend
def test_a_class_of_one_image_is_said_not_to_be_tested(tmp_path, caplog):
    write_people(tmp_path / "faces", ["ann", "bob"], 8)
    write_people(tmp_path / "faces", ["cem"], 1)
    _, test = train.open_data(dataclasses.replace(TINY, data=str(tmp_path / "faces")))
    assert set(test.labels.tolist()) == {0, 1}
    assert "1 classes have one image each: they are not tested" in caplog.text


@pytest.mark.any_backend
def test_splits_by_identity_are_refused_and_lone_classes_said(tmp_path, caplog):
    write_people(tmp_path / "faces", ["ann", "bob", "cem", "dan"], 2)
    files = sorted((tmp_path / "faces").rglob("*.*"))
    files = [file for file in files if file.is_file()]

    def opened(tested):
        rows = [f"{f},{f.parent.name},{'test' if tested(f) else 'train'}" for f in files]
        (tmp_path / "faces.csv").write_text("\n".join(["file,label,split", *rows]))
        splits = {"train_split": "train", "test_split": "test"}
        recipe = dataclasses.replace(TINY, data=str(tmp_path / "faces.csv"), **splits)
        caplog.clear()
        return train.open_data(recipe)

    with pytest.raises(ValueError, match="images of different classes: no tested class would be"):
        opened(lambda file: file.parent.name in ("cem", "dan"))
    seconds = files[1::2]
    opened(lambda file: file in seconds)
    assert not caplog.text
    opened(lambda file: file.parent.name == "dan" or (file in seconds and "ann" not in str(file)))
    assert "1 classes have test images but none to train on" in caplog.text
    assert "1 classes have no test image: they are not tested" in caplog.text


@pytest.mark.any_backend
def test_a_broken_pair_is_named_before_training(tmp_path, monkeypatch):
    write_people(tmp_path / "faces", ["ann", "bob"], 8)
    write_people(tmp_path / "others", ["cem", "dan", "eva", "fay"], 4)
    for file in (tmp_path / "others" / "cem").iterdir():
        file.write_bytes(b"")
    monkeypatch.setattr(train, "fit", lambda *_, **__: pytest.fail("trained"))
    recipe = dataclasses.replace(TINY, data=str(tmp_path / "faces"), pairs=str(tmp_path / "others"))
    with pytest.raises(ValueError, match=r"cem.*the file is empty"):
        train.run(recipe, tmp_path / "run", verbose=0)


@pytest.mark.any_backend
def test_results_are_there_whatever_happens_in_verification(tmp_path, monkeypatch):
    monkeypatch.setattr(kh.evaluation, "evaluate_pairs", lambda *_, **__: 1 / 0)
    recipe = dataclasses.replace(TINY, epochs=1, pairs="synthetic:20x6")
    with pytest.raises(ZeroDivisionError):
        train.run(recipe, tmp_path, verbose=0)
    assert json.loads((tmp_path / "results.json").read_text())["top1"] is not None


@pytest.mark.any_backend
def test_a_machine_without_git_has_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert report.commit() is None


@pytest.mark.any_backend
def test_calibration_images_are_of_all_classes():
    images = np.arange(240, dtype="uint8")[:, None, None, None]
    loaded = data.LoadedImages(images, np.arange(240) // 12, list(range(20)), [], np.arange(240))
    chosen = report._some_images(TINY, loaded, 128)
    assert len(chosen) == 128 and {*(chosen.ravel() // 12)} == {*range(20)}


@pytest.mark.any_backend
def test_aligned_crops_are_as_large_as_the_models_images(monkeypatch):
    asked = []
    monkeypatch.setattr(data, "open_source", lambda spec, **options: asked.append(options))
    monkeypatch.setattr(data, "split_source", lambda *_: 1 / 0)
    for size in (64, 160):
        recipe = dataclasses.replace(
            TINY, data="faces.csv", image_size=size, data_options={"align": True}
        )
        with pytest.raises(ZeroDivisionError):
            train.open_data(recipe)
    assert [options["image_size"] for options in asked] == [112, 160]


@pytest.mark.any_backend
def test_a_run_without_matplotlib_and_tensorboard_has_its_results(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    missing = ("matplotlib", "tensorboard")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in missing else find(name, *a)
    )
    monkeypatch.setattr(kh.evaluation, "plot_confusion", lambda *_: 1 / 0)
    recipe = dataclasses.replace(TINY, epochs=1, pairs="synthetic:20x6")
    results = train.run(recipe, tmp_path, verbose=0)
    assert "No figures: matplotlib is not installed." in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["top1"] == results["top1"]
    assert (tmp_path / "report.html").exists() and not list(tmp_path.glob("*.png"))
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.any_backend
def test_the_results_are_written_before_the_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])
    monkeypatch.setattr(kh.evaluation, "plot_confusion", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.run(dataclasses.replace(TINY, epochs=1), tmp_path, verbose=0)
    assert json.loads((tmp_path / "results.json").read_text())["test_images"] == 16


@pytest.mark.any_backend
def test_a_run_that_is_thrown_away_leaves_nothing_to_be_taken_for_the_next_ones(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])

    def export(model, path, **options):
        path.mkdir() if path.name == "saved_model" else path.touch()
        return types.SimpleNamespace(
            to_dict=lambda: {"path": str(path), "size_bytes": 0, "max_abs_difference": 0}
        )

    for name in ("to_saved_model", "to_onnx", "to_litert"):
        monkeypatch.setattr(kh.export, name, export)
    monkeypatch.setattr(report, "check_export", lambda recipe: None)
    recipe = dataclasses.replace(
        TINY, epochs=1, pairs="synthetic:20x6", pairs_every=1, export="+".join(EXPORTS)
    )
    train.run(recipe, tmp_path, verbose=0)
    (tmp_path / "tensorboard" / "train").mkdir(parents=True)
    for name in ("notes.txt", "photograph.png"):
        (tmp_path / name).write_text("mine")
    written = {path.name for path in tmp_path.iterdir()}
    assert {"checkpoint", "history.csv", "last.keras", "results.json", "report.html"} <= written
    assert {"saved_model", "model.onnx", "model.tflite", "model_int8.tflite"} <= written

    class Killed(Exception): ...

    def kill(*arguments):
        raise Killed

    monkeypatch.setattr(train, "begin_with_trained", kill)
    with pytest.raises(Killed):
        train.run(dataclasses.replace(recipe, seed=5), tmp_path, restart=True, verbose=0)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"notes.txt", "photograph.png", ".lock"}


@pytest.mark.any_backend
def test_the_backend_of_the_users_keras_json_is_taken(tmp_path):
    backend = keras.backend.backend()
    (tmp_path / "keras.json").write_text(json.dumps({"backend": backend}))
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    environment |= {"KERAS_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    script = "from training import train; import sys; sys.exit(train.run_command(None, lambda: "
    script += "print(sys.modules['keras'].backend.backend())))"
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.stdout.split()[-1:] == [backend], found.stderr


@pytest.mark.any_backend
def test_a_folder_that_another_run_is_writing_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])
    with (
        train._sole_writer(tmp_path),
        pytest.raises(ValueError, match=f"Another run is writing to {re.escape(str(tmp_path))}"),
    ):
        train.run(dataclasses.replace(TINY, epochs=1), tmp_path, verbose=0)
    with train._sole_writer(tmp_path):  # what has ended holds it no longer
        pass


@pytest.mark.any_backend
def test_what_is_wrong_with_the_folder_is_said_before_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])
    recipe = dataclasses.replace(TINY, epochs=1)
    train.run(recipe, tmp_path / "run", verbose=0)
    (tmp_path / "file").touch()
    monkeypatch.setattr(train, "load_data", lambda recipe: pytest.fail("data were read"))
    with pytest.raises(ValueError, match=r"--out .*run: .*file is no folder that can be written"):
        train.run(recipe, tmp_path / "file" / "run", verbose=0)
    with pytest.raises(ValueError, match=r"other settings \({'seed': 0}\)"):
        train.run(dataclasses.replace(recipe, seed=5), tmp_path / "run", verbose=0)
    with train._sole_writer(tmp_path / "run"), pytest.raises(ValueError, match="Another run is"):
        train.run(recipe, tmp_path / "run", verbose=0)


@pytest.mark.any_backend
def test_an_augmentation_that_does_not_exist_is_named_before_anything_is_read(tmp_path):
    recipe = dataclasses.replace(TINY, data="nowhere/", augmentation={"crop_padding": 4})
    message = "augmentation has crop_padding; augment='faces' takes flip, shift"
    with pytest.raises(ValueError, match=message):
        train.run(recipe, tmp_path, verbose=0)
    with pytest.raises(ValueError, match="augment='none' takes nothing"):
        train.run(dataclasses.replace(recipe, augment="none"), tmp_path, verbose=0)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": "facerec_small", "model_arguments": {"depht": 6}},
            "model_arguments has depht; facerec_small takes .*depth",
        ),
        ({"model_arguments": {"depht": 6}}, "model_arguments has depht; vit_ti16 takes .*depth"),
        ({"model": "facerec_smal"}, "No model is named 'facerec_smal'. Did you mean facerec_small"),
        ({"augmentation": {"shift": "much"}}, "{'shift': 'much'} does not fit augment='faces'"),
        (
            {"augment": "images", "augmentation": {"jitter": "much"}},
            "{'jitter': 'much'} does not fit augment='images'",
        ),
    ],
)
def test_arguments_that_do_not_exist_are_named_before_anything_is_read(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train.run(dataclasses.replace(TINY, data="nowhere/", **changes), tmp_path, verbose=0)


@pytest.mark.any_backend
def test_a_batch_is_counted_with_the_images_it_has(tmp_path, monkeypatch, capsys):
    seconds = types.SimpleNamespace(monotonic=itertools.count().__next__)  # one at each look
    monkeypatch.setattr(checkpoint, "time", seconds)
    recipe = dataclasses.replace(TINY, batch_size=640, epochs=1)
    _, history = train_until(recipe, tmp_path, monkeypatch)
    assert history[0]["images_per_second"] == 64  # of 80, 16 are for testing
    message = "A batch is the 64 training images there are, fewer than batch_size=640."
    assert message in capsys.readouterr().out


@pytest.mark.any_backend
def test_the_first_execution_of_a_run_is_not_in_the_rate():
    """The clock is read at an epoch's begin and after each execution; the first took 100 s."""
    times = iter([0, 100, 101, 102, 200, 201, 202, 203])
    batches = type("Batches", (), {"batch_size": 10, "__len__": lambda self: 3})()
    rate, logs = checkpoint.Throughput(batches), [{}, {}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "time", types.SimpleNamespace(monotonic=times.__next__))
        rate.on_train_begin()
        for epoch in range(2):
            rate.on_epoch_begin(epoch)
            for batch in range(3):
                rate.on_train_batch_end(batch)
            rate.on_epoch_end(epoch, logs[epoch])
    assert [log["images_per_second"] for log in logs] == [10, 10]


def test_a_run_without_a_single_update_is_refused(tmp_path):
    recipe = dataclasses.replace(TINY, epochs=2, batch_size=16, gradient_accumulation_steps=9)
    with pytest.raises(ValueError, match="is more than the run's 8 batches"):
        train.run(recipe, tmp_path, verbose=0)


@pytest.mark.any_backend
def test_synthetic_pairs_go_with_photographs():
    recipe = dataclasses.replace(TINY, data="faces/", pairs="synthetic:20x6")
    assert len(train.load_pairs(recipe)) == 600


def test_the_history_file_has_one_row_for_each_epoch(whole_run):
    folder, _, history = whole_run
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [0, 1]
    assert float(rows[1]["loss"]) == pytest.approx(history[1]["loss"])
    assert float(rows[1]["images_per_second"]) > 0


def test_nan_stops_with_step_rate_and_advice(tmp_path, monkeypatch):
    recipe = dataclasses.replace(
        TINY, learning_rate=1e30, schedule="constant", clip_norm=None, optimizer="sgd"
    )
    with pytest.raises(FloatingPointError, match=r"step \d+ .* learning rate 1e\+30.*Try"):
        train_until(recipe, tmp_path, monkeypatch)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_accumulated_batches_are_one_larger_batch(tmp_path, monkeypatch, optimizer):
    """Without what depends on a batch, and at one rate; 64 images are 4 batches or 2."""
    plain = {**TINY.model_arguments, "drop_path": 0.0, "dropout": 0.0}
    recipe = dataclasses.replace(TINY, model_arguments=plain, optimizer=optimizer, augment="none")
    recipe = dataclasses.replace(recipe, schedule="constant")
    changes = {
        "one": {"batch_size": 32},
        "two": {"gradient_accumulation_steps": 2},
    }
    weights = {}
    for name, changed in changes.items():
        (tmp_path / name).mkdir()
        changed = dataclasses.replace(recipe, **changed)
        weights[name], _ = train_until(changed, tmp_path / name, monkeypatch)
    expected, found = weights.values()
    keras.utils.set_random_seed(recipe.seed)
    start = build_model(recipe, 4, 4).weights
    start = [keras.ops.convert_to_numpy(v) for v in start]
    moved = max(np.abs(a - b).max() for a, b in zip(expected, start, strict=True))
    assert moved > 1e-3
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * moved)


def test_a_run_in_float16_resumes_within_an_epoch(tmp_path, monkeypatch):
    recipe = dataclasses.replace(TINY, precision="mixed_float16", checkpoint_steps=1)
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        expected, history = train_until(recipe, tmp_path / "whole", monkeypatch)
        with pytest.raises(Stop):
            train_until(recipe, tmp_path / "broken", monkeypatch, 2)
        resumed, resumed_history = train_until(recipe, tmp_path / "broken", monkeypatch)
    finally:
        keras.config.set_dtype_policy(former)
    assert len(resumed_history) == len(history) == 2
    for a, b in zip(expected, resumed, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup_epochs": 2.0}, "warmup_epochs=2 is all of the run's 2 epochs: it ends at the"),
        ({"ema_momentum": 0.9}, "ema_momentum=0.9 over 10 steps: 35 % of the average"),
        ({"ema_momentum": 0.6}, ""),
    ],
)
def test_a_run_too_short_for_its_recipe_is_warned_of(changes, message, caplog):
    build_optimizer(dataclasses.replace(TINY, **changes), 5)
    assert message in caplog.text and bool(message) == bool(caplog.text)


def test_a_test_split_may_lack_some_of_the_trained_people(tmp_path, caplog):
    image_module = pytest.importorskip("PIL.Image")
    for split, people in (("train", "abcd"), ("test", "bd")):
        for person in people:
            for number in range(4):
                file = tmp_path / split / person / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image_module.fromarray(np.full((8, 8, 3), ord(person), np.uint8)).save(file)
    recipe = dataclasses.replace(
        TINY, data=str(tmp_path), train_split="train", test_split="test", test_fraction=0.3
    )
    images, test = train.load_data(recipe)
    assert sorted(set(images.labels.tolist())) == [0, 1, 2, 3]
    np.testing.assert_array_equal(test.labels, test.images[:, 0, 0, 0].astype(int) - ord("a"))
    (tmp_path / "test" / "b").rename(tmp_path / "test" / "x")
    with pytest.raises(
        ValueError, match=r"test_split='test' of .* that train_split='train' lacks: x"
    ):
        train.load_data(recipe)


def test_a_run_with_an_adaptive_loss_resumes_its_state(tmp_path, monkeypatch):
    recipe = dataclasses.replace(TINY, loss="curricularface")
    expected, history = train_until(recipe, tmp_path / "whole", monkeypatch)
    with pytest.raises(Stop):
        train_until(recipe, tmp_path / "broken", monkeypatch, 3)
    resumed, resumed_history = train_until(recipe, tmp_path / "broken", monkeypatch)
    assert resumed_history[-1]["curriculum_t"] == pytest.approx(history[-1]["curriculum_t"])
    for a, b in zip(expected, resumed, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_run_against_samples_of_the_classes_resumes_its_draws(tmp_path, monkeypatch):
    recipe = dataclasses.replace(TINY, data="synthetic:24x5", sampling_rate=0.7)
    expected, history = train_until(recipe, tmp_path / "whole", monkeypatch)
    with pytest.raises(Stop):
        train_until(recipe, tmp_path / "broken", monkeypatch, 3)
    resumed, _ = train_until(recipe, tmp_path / "broken", monkeypatch)
    for a, b in zip(expected, resumed, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_sample_smaller_than_a_batch_is_refused_before_training(tmp_path):
    recipe = dataclasses.replace(TINY, data="synthetic:24x5", sampling_rate=0.5)
    with pytest.raises(ValueError, match=r"sampling_rate 0\.5 of 24 identities is 12 a step.*16"):
        train.run(recipe, tmp_path, verbose=0)


CLASSIFIER = dataclasses.replace(
    TINY,
    loss="cross_entropy",
    label_smoothing=0.1,
    augment="images",
    augmentation={"crop_padding": 2, "mixup": 0.5},
    ema_momentum=0.7,
)


def test_a_classifier_with_mixed_labels_and_averaged_weights_resumes(tmp_path, monkeypatch):
    expected, history = train_until(CLASSIFIER, tmp_path / "whole", monkeypatch)
    with pytest.raises(Stop):
        train_until(CLASSIFIER, tmp_path / "broken", monkeypatch, 3)  # in the first epoch
    resumed, resumed_history = train_until(CLASSIFIER, tmp_path / "broken", monkeypatch)
    for a, b in zip(expected, resumed, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert resumed_history[-1]["val_loss"] == pytest.approx(history[-1]["val_loss"], rel=1e-4)
    # A finished run that is started again has the average, too.
    again, _ = train_until(CLASSIFIER, tmp_path / "whole", monkeypatch)
    for a, b in zip(expected, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_average_of_the_weights_is_validated_and_is_what_the_run_ends_with(tmp_path):
    """Second derivation: the average computed here from each step's weights."""
    recipe = dataclasses.replace(CLASSIFIER, epochs=1, checkpoint_steps=1)
    keras.utils.set_random_seed(0)
    images, test = train.load_data(recipe)
    model = build_model(recipe, 4, len(images.labels) // recipe.batch_size)
    average, steps = [None], []

    class Average(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            sync = getattr(self.model, "jax_state_sync", None)
            if sync is not None:
                sync()
            now = [keras.ops.convert_to_numpy(v) for v in self.model.trainable_variables]
            steps.append(now)
            before = average[0] or now  # Keras's average starts at the first step
            average[0] = [0.7 * a + 0.3 * b for a, b in zip(before, now, strict=True)]

    fit = type(model).fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_tensorboard", lambda folder: [Average()])
        history, _ = train.fit(
            recipe, model, images, test, tmp_path, settings={}, restart=False, verbose=0
        )
    assert type(model).fit is fit and len(steps) == 4
    for a, b in zip(average[0], model.trainable_variables, strict=True):
        np.testing.assert_allclose(a, keras.ops.convert_to_numpy(b), rtol=1e-4, atol=1e-5)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(average[0], steps[-1], strict=True))
    best = keras.models.load_model(tmp_path / "best.keras")
    for a, b in zip(best.trainable_variables, average[0], strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(a), b, rtol=1e-4, atol=1e-5)
    labels = np.eye(4, dtype="float32")[test.labels]
    loss = model.evaluate(test.images, labels, verbose=0, return_dict=True)["loss"]
    assert history[0]["val_loss"] == pytest.approx(loss, rel=1e-3)


@pytest.mark.any_backend
def test_pairs_are_verified_over_training_with_the_averaged_weights(tmp_path):
    recipe = dataclasses.replace(TINY, pairs="synthetic:20x6", pairs_every=2, ema_momentum=0.5)
    results = train.run(recipe, tmp_path, verbose=0)
    history = json.loads((tmp_path / "checkpoint" / "latest.json").read_text())["history"]
    assert ["pairs_accuracy" in row for row in history] == [False, True]
    # The run ends with the average, and its closing verification is of that.
    for name in ("accuracy", "accuracy_std", "auc", "xnorm"):
        expected = results["verification"][name]
        assert history[1][f"pairs_{name}"] == pytest.approx(expected, rel=1e-4)
    # What the run keeps of each stage makes the figure of the report.
    stages = verified_stages(tmp_path)
    assert list(stages) == [2]
    assert stages[2].auc == pytest.approx(results["verification"]["auc"], rel=1e-4)
    assert (tmp_path / "roc_over_training.png").exists()
    assert "ROC over training" in (tmp_path / "report.html").read_text()
    # Verifying leaves the run as it was.
    plain = train.run(dataclasses.replace(recipe, pairs_every=0), tmp_path / "plain", verbose=0)
    assert plain["loss"] == pytest.approx(results["loss"], rel=1e-5)
    assert not (tmp_path / "plain" / "roc_over_training.png").exists()


@pytest.mark.any_backend
def test_images_read_lazily_train_the_same_model(tmp_path, monkeypatch):
    from PIL import Image

    images, labels = data.synthetic_identities(4, 10, image_size=20)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "faces" / f"person{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image)).save(folder / f"{i:03d}.png")
    recipe = dataclasses.replace(TINY, data=str(tmp_path / "faces"), batch_size=8)
    expected, _ = train_until(recipe, tmp_path / "memory", monkeypatch)
    lazy = dataclasses.replace(recipe, reading="lazy", workers=2)
    found, _ = train_until(lazy, tmp_path / "lazy", monkeypatch)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    source, _ = train.load_data(lazy)
    calibration = report._some_images(lazy, source, 7)
    assert calibration.shape[1:] == (16, 16, 3) and 7 <= len(calibration) <= 14
    # A broken file that is all of a class's share: training has reported it, the export goes on.
    pathlib.Path(source.paths[0]).write_bytes(b"no image")
    assert len(report._some_images(lazy, source, 7)) == len(calibration) - 1


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remat": True, "model": "mobilefacenet", "model_arguments": {}}, "no attention layer"),
        ({"sampling_rate": 0.3}, "sampling_rate 0.3 of 4 identities is 2 a step"),
        ({"mesh": "data=2,model=3"}, "must divide the number of identities, 4"),
    ],
)
def test_what_cannot_be_trained_is_said_before_images_are_read(
    changes, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(data, "load_arrays", lambda *_, **__: pytest.fail("images are read"))
    monkeypatch.setattr(train, "distribution", lambda recipe: contextlib.nullcontext())
    with pytest.raises(ValueError, match=message):
        train.run(dataclasses.replace(TINY, **changes), tmp_path, verbose=0)


@pytest.mark.any_backend
@pytest.mark.parametrize("reading", ["memory", "lazy"])
def test_a_person_without_a_readable_test_image_is_not_tested(tmp_path, caplog, reading):
    pytest.importorskip("PIL.Image")
    write_faces(tmp_path, people=3, images_each=5)
    recipe = dataclasses.replace(TINY, data=str(tmp_path / "index.csv"), reading=reading)
    _, test = train.open_data(recipe)
    assert len(test) == 3
    pathlib.Path(test.paths[1]).write_bytes(b"no image")
    _, test = train.load_data(recipe)
    assert test.labels.tolist() == [0, 2] and len(test.class_names) == 3
    assert "1 classes have no test image that can be read" in caplog.text


@pytest.mark.any_backend
def test_a_run_on_shards_stopped_in_an_epoch_ends_as_the_whole_run_on_files(tmp_path, monkeypatch):
    pytest.importorskip("PIL.Image")
    pytest.importorskip("array_record", reason="array-record is not installed")
    write_faces(tmp_path, people=4, images_each=10)
    recipe = dataclasses.replace(
        TINY, data=str(tmp_path / "index.csv"), batch_size=8, reading="lazy", workers=2
    )
    expected, _ = train_until(recipe, tmp_path / "files", monkeypatch)
    data.write_shards(data.open_source(recipe.data), tmp_path / "shards", 3)
    recipe = dataclasses.replace(recipe, data=str(tmp_path / "shards"))
    with pytest.raises(Stop):
        train_until(recipe, tmp_path / "run", monkeypatch, 3)
    state = json.loads((tmp_path / "run/checkpoint/latest.json").read_text())
    assert (state["epoch"], state["batch"]) == (0, 2)  # of four batches
    found, history = train_until(recipe, tmp_path / "run", monkeypatch)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert [row["epoch"] for row in history] == [0, 1]


GIVEN_LANDMARKS = dataclasses.replace(
    TINY,
    model="kprpe_vit_small",
    model_arguments={
        **{k: v for k, v in cases.SMALL["kprpe_*"].items() if k != "input_shape"},
        "landmarks": "given",
        "depth": 1,
    },
    epochs=3,
    batch_size=8,
)


def write_faces(root, people, images_each):
    """Faces as PNG, and a table of their people and landmarks; returns the files' names."""
    from PIL import Image

    images, labels = data.synthetic_identities(people, images_each, image_size=20)
    names = [f"p{label}/p{label}_{i % images_each + 1:04d}.png" for i, label in enumerate(labels)]
    points = (np.array(ALIGNED_LANDMARKS) + 0.5) * 20 / 112 - 0.5
    points = points + np.random.default_rng(0).uniform(-1, 1, (len(images), 5, 2))
    with (root / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", *(f"{axis}{i}" for i in range(5) for axis in "xy")])
        for name, label, image, of_image in zip(names, labels, images, points, strict=True):
            (root / name).parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(root / name)
            writer.writerow([name, label, *of_image.ravel()])
    return names


@pytest.mark.any_backend
def test_a_model_is_trained_and_judged_with_the_landmarks_of_the_data(tmp_path, monkeypatch):
    pytest.importorskip("PIL.Image")
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])
    write_faces(tmp_path, people=4, images_each=10)
    table = str(tmp_path / "index.csv")
    pairs = ["1\t2", "p0\t1\t2", "p1\t1\t2", "p0\t1\tp1\t1", "p2\t1\tp3\t1"]
    (tmp_path / "pairs.txt").write_text("\n".join(pairs))
    recipe = dataclasses.replace(
        GIVEN_LANDMARKS,
        data=table,
        pairs=str(tmp_path / "pairs.txt"),
        pairs_images=str(tmp_path),
        pairs_landmarks=table,
    )
    with cases.fast_compilation():
        results = train.run(recipe, tmp_path / "memory", verbose=0)
    with (tmp_path / "memory" / "history.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]
    assert 0 <= results["verification_flip"]["accuracy"] <= 1
    # What was reported is what the model says when it is handed its inputs by hand.
    model = keras.models.load_model(tmp_path / "memory" / "last.keras")
    assert np.abs(model.get_layer("keypoint_linear").get_weights()[0]).max() > 0
    _, test = train.load_data(recipe)
    inputs = [test.images.astype("float32"), (test.landmarks + 0.5) / 16]
    top1 = np.mean(model.predict(inputs, verbose=0).argmax(axis=1) == test.labels)
    assert results["top1"] == pytest.approx(top1)
    # Read lazily, and with labels as distributions: the same inputs.
    batches = train.build_batches(recipe, train.load_data(recipe)[0])
    for other in ({"reading": "lazy"}, {"loss": "cross_entropy"}):
        changed = dataclasses.replace(recipe, **other)
        found = train.build_batches(changed, train.load_data(changed)[0])[1][0]
        for key, expected in batches[1][0].items():
            np.testing.assert_allclose(found[key], expected, atol=1e-5)


def test_a_model_that_takes_landmarks_is_not_trained_without_them(tmp_path, caplog):
    recipe = dataclasses.replace(GIVEN_LANDMARKS, data="synthetic:4x5")
    for reading in ("memory", "lazy"):
        with pytest.raises(ValueError, match=r"has no landmarks: a \.csv needs columns x0"):
            train.run(dataclasses.replace(recipe, reading=reading), tmp_path / "out", verbose=0)
    assert not (tmp_path / "out").exists()
    pytest.importorskip("PIL.Image")
    names = write_faces(tmp_path, people=2, images_each=2)
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *(f"{n},{n[1]}" for n in names)]))
    options = {"landmarks": str(tmp_path / "index.csv")}
    plain = dataclasses.replace(TINY, data=str(tmp_path / "labels.csv"), data_options=options)
    train.load_data(plain)
    assert "vit_ti16 takes no landmarks: those of the data are not used" in caplog.text


@pytest.mark.any_backend
def test_patience_ends_a_run_and_a_second_start_adds_nothing(tmp_path, monkeypatch):
    # A rate of nearly zero: no epoch is better than the first.
    recipe = dataclasses.replace(
        TINY, epochs=6, patience=2, learning_rate=1e-12, schedule="constant", optimizer="sgd"
    )
    _, history = train_until(recipe, tmp_path, monkeypatch)
    assert [row["epoch"] for row in history] == [0, 1, 2]
    _, again = train_until(recipe, tmp_path, monkeypatch)
    assert len(again) == 3


@pytest.mark.any_backend
def test_a_whole_run_writes_results_and_a_report(tmp_path):
    recipe = dataclasses.replace(TINY, pairs="synthetic:20x6", epochs=1)
    results = train.run(recipe, tmp_path, verbose=0)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["top1"] == results["top1"]
    assert 0 <= written["verification"]["accuracy"] <= 1
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert written["class_names"] == [f"synthetic_{i:05d}" for i in range(4)]
    model = keras.models.load_model(tmp_path / "last.keras")
    assert model.count_params() == results["parameters"]


def test_tensorboard_s_log_has_the_times_of_each_epoch(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the log is written with TensorFlow's writer")
    accumulation = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train.run(TINY, tmp_path, verbose=0)
    log = accumulation.EventAccumulator(
        str(tmp_path / "tensorboard" / "train"), size_guidance={"tensors": 0}
    ).Reload()
    with (tmp_path / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    for name in ("loss", "accuracy", "images_per_second", "seconds"):
        events = log.Tensors(f"epoch_{name}")
        assert [event.step for event in events] == [0, 1]
        written = [float(_tensor(event)) for event in events]
        assert written == pytest.approx([float(row[name]) for row in history], rel=1e-5)


def _tensor(event):
    import tensorflow as tf

    return tf.make_ndarray(event.tensor_proto)


@pytest.fixture
def tiny_sets(tmp_path, monkeypatch):
    """A list of LFW and a .bin of CFP-FP with two folds of two and two pairs, as if it were so."""
    known = data.verification_sets._SETS
    changed = (dataclasses.replace(one, same=4, different=4, folds=2) for one in known)
    monkeypatch.setattr(data.verification_sets, "_SETS", tuple(changed))
    image_module = pytest.importorskip("PIL.Image")
    lines = ["2\t2"]
    for fold in range(2):
        names = [f"p{2 * fold}", f"p{2 * fold + 1}"]
        lines += [f"{name}\t1\t2" for name in names]
        lines += [f"{names[0]}\t{i}\t{names[1]}\t{i}" for i in (1, 2)]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    pixels, people = data.synthetic_identities(4, 2, image_size=16)
    for i, (image, person) in enumerate(zip(pixels, people, strict=True)):
        folder = tmp_path / "lfw" / f"p{person}"
        folder.mkdir(parents=True, exist_ok=True)
        image_module.fromarray(np.asarray(image)).save(folder / f"p{person}_{i % 2 + 1:04d}.png")
    content = ([picture(i) for i in range(16)], [True, True, False, False] * 2)
    (tmp_path / "cfp_fp.bin").write_bytes(pickle.dumps(content, 2))
    return {
        "LFW": f"{tmp_path / 'pairs.txt'},{tmp_path / 'lfw'}",
        "cfp_fp": str(tmp_path / "cfp_fp.bin"),
    }


@pytest.mark.any_backend
def test_verification_sets_are_judged_by_name_at_the_end(tiny_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])
    recipe = dataclasses.replace(TINY, epochs=1, verification_sets=tiny_sets)
    results = train.run(recipe, tmp_path / "run", verbose=0)
    found = results["verification_sets"]
    assert list(found) == ["LFW", "CFP-FP"]
    model = keras.models.load_model(tmp_path / "run" / "last.keras")
    for name, where in tiny_sets.items():
        pairs = data.read_verification_set(name, *where.split(","))
        for crops, flip in (("single crop", False), ("crop and mirror image", True)):
            expected = kh.evaluation.evaluate_pairs(model, pairs, flip=flip).to_dict()
            written = found[data.verification_set_info(name).name][crops]
            assert written["pairs"] == 8 and written["accuracy"] == expected["accuracy"]
            assert written["auc"] == pytest.approx(expected["auc"])
    assert "Verification sets" in (tmp_path / "run" / "report.html").read_text()
    # The columns of a table: LFW's from the set, and from LFW's pairs where there is none.
    columns = run_table.verified(results)
    lfw = found["LFW"]
    assert columns["lfw"] == lfw["single crop"]["accuracy"]
    assert columns["lfw_std"] == lfw["single crop"]["accuracy_std"]
    assert columns["lfw_flip"] == lfw["crop and mirror image"]["accuracy"]
    assert columns["lfw_xnorm"] == lfw["single crop"]["xnorm"]
    assert columns["lfw_auc"] == lfw["single crop"]["auc"]
    assert columns["cfp_fp"] == found["CFP-FP"]["single crop"]["accuracy"]
    assert set(columns) <= set(run_table.COLUMNS)
    pairs = {"accuracy": 0.9, "accuracy_std": 0.1, "auc": 0.95, "xnorm": 20.0}
    pairs |= {"same_pairs": 3000, "different_pairs": 3000, "fold_accuracies": [0.9] * 10}
    given = {"verification": pairs, "verification_flip": {"accuracy": 0.91}}
    assert run_table.verified(given)["lfw_flip"] == 0.91
    assert run_table.verified({**results, **given}) == columns


@pytest.mark.any_backend
def test_a_table_has_a_column_for_each_verification_set():
    names = [name.lower().replace("-", "_") for name in data.list_verification_sets()]
    assert names == ["lfw", *run_table.SETS]


@pytest.mark.any_backend
def test_verification_sets_that_are_not_so_stop_before_training(tiny_sets, tmp_path):
    for sets, message in (
        ({"ijb_c": "ijbc.bin"}, "'ijb_c' is no verification set; known: LFW"),
        ({"LFW": tiny_sets["cfp_fp"], "talfw": "x.txt"}, r"TALFW is read from a \.bin file"),
        ({"CALFW": "pairs_CALFW.txt"}, "the folder or .zip of the images"),
    ):
        recipe = dataclasses.replace(TINY, verification_sets=sets)
        with pytest.raises(ValueError, match=message):
            train.run(recipe, tmp_path / "run", verbose=0)
    (tmp_path / "short.bin").write_bytes(pickle.dumps(([picture(0)] * 8, [True, False] * 2), 2))
    recipe = dataclasses.replace(TINY, verification_sets={"lfw": str(tmp_path / "short.bin")})
    with pytest.raises(ValueError, match=r"LFW has 8 pairs, but .*short\.bin has 4"):
        train.run(recipe, tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.any_backend
def test_very_many_classes_are_not_named_in_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_CLASS_NAMES", 3)
    assert "class_names" not in train.run(dataclasses.replace(TINY, epochs=1), tmp_path, verbose=0)


@pytest.mark.any_backend
def test_a_failed_export_leaves_results_a_report_and_a_run_to_export_again(
    tmp_path, monkeypatch, capsys
):
    def fail(*arguments, **options):
        raise kh.export.ExportError("no such operator")

    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])
    monkeypatch.setattr(report, "check_export", lambda recipe: None)
    monkeypatch.setattr(kh.export, "to_litert", fail)
    command = _command(tmp_path, "--epochs", "1")[2:]
    assert train.main([*command, "--export", "litert+int8_cpu"]) == 1
    error = capsys.readouterr().err
    assert f"The run is done, with its results in {tmp_path / 'results.json'}, but not" in error
    assert "litert: no such operator\nint8_cpu: no such operator" in error
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["export"][1] == {"format": "int8_cpu", "error": "no such operator"}
    assert "int8_cpu: failed" in (tmp_path / "report.html").read_text()
    # The same run without the export: nothing is trained again.
    assert train.main([*command, "--export", "none"]) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert "export" not in again and again["seconds"] == written["seconds"]
    assert again["top1"] == written["top1"]


@pytest.mark.any_backend
def test_the_results_are_written_before_an_export_that_ends_the_process(tmp_path, monkeypatch):
    def end(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(report, "check_export", lambda recipe: None)
    monkeypatch.setattr(kh.export, "to_onnx", end)
    with pytest.raises(MemoryError):
        train.run(dataclasses.replace(TINY, epochs=1, export="onnx"), tmp_path, verbose=0)
    assert json.loads((tmp_path / "results.json").read_text())["epochs"] == 1


@pytest.mark.any_backend
def test_what_an_export_lacks_is_said_before_anything_is_read(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if "onnx" in name else find(name)
    )
    recipe = dataclasses.replace(TINY, data="nowhere/", export="onnx")
    with pytest.raises(ImportError, match=r"export='onnx' needs .*jax2onnx.*not installed"):
        train.run(recipe, tmp_path, verbose=0)


def _command(out, *more):
    options = {
        "model": [TINY.model],
        "model-arguments": [f"{k}={v}" for k, v in TINY.model_arguments.items()],
        "data": ["synthetic:4x40"],
        "image-size": ["16"],
        "batch-size": ["8"],
        "epochs": ["4"],
        "checkpoint-steps": ["3"],
        "validation-every": ["1"],
        "pairs": ["none"],
        "export": ["none"],
    }
    flags = [part for key, values in options.items() for part in (f"--{key}", *values)]
    script = str(ROOT / "training" / "train.py")
    return [sys.executable, script, "facerec_small", "--out", str(out), "--quiet", *flags, *more]


@pytest.mark.slow
def test_a_killed_process_continues_with_the_same_command(tmp_path):
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    pointer = tmp_path / "run" / "checkpoint" / "latest.json"
    process = subprocess.Popen(
        _command(tmp_path / "run"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not pointer.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = json.loads(pointer.read_text())
    assert (pointer.parent / state["file"]).exists()
    done = subprocess.run(
        _command(tmp_path / "run"), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"Continuing at epoch {state['epoch'] + 1}, batch {state['batch']}" in done.stdout
    history = json.loads(pointer.read_text())["history"]
    assert [row["epoch"] for row in history] == [0, 1, 2, 3]


def test_a_wrong_data_set_is_one_sentence_and_exit_status_1(tmp_path, capsys):
    status = train.main(["facerec_small", "--data", str(tmp_path), "--out", str(tmp_path / "run")])
    assert status == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(tmp_path) in error
