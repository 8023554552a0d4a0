"""The papers' tables, and every recipe end to end on a small slice."""

import argparse
import csv
import dataclasses
import os
import pathlib
import shlex
import signal
import threading
import types

import keras
import numpy as np
import pytest

from keras_hybrid.applications import registry
from tests import cases
from tests.training.test_model import small_arguments
from training import report, run_table, train
from training.recipe import Recipe, add_overrides, load_recipe, recipe_names
from training.run_table import row_recipe
from training.tables import TABLES, Row, Table

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS = [(table, row) for table in TABLES for row in TABLES[table].rows]

# What a recipe asks for does not depend on the backend, and `fit` of every family on each of them
# is tested with the registry.
once = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the same on every backend: tested on PyTorch"
)


def options(*arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--reduced", action="store_true")
    add_overrides(parser)
    return parser.parse_args(arguments)


def slice_of(recipe: Recipe) -> Recipe:
    """The recipe on a few images with its model's smallest form, for two epochs."""
    small = small_arguments(recipe.model)
    size = small.pop("input_shape")[0]
    is_of_faces = recipe.loss != "cross_entropy"
    return dataclasses.replace(
        recipe,
        model_arguments=small,
        data="synthetic:6x5",
        images=None,
        train_split=None,
        test_split=None,
        test_fraction=0.2,
        image_size=size,
        batch_size=8,
        epochs=2,
        warmup_epochs=min(recipe.warmup_epochs, 1.0),
        pairs="synthetic:20x6" if is_of_faces else None,
        pairs_images=None,
        pairs_every=2 if is_of_faces else 0,
        export="none",
    )


@once
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_runs_for_two_epochs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])  # it imports TensorFlow
    recipe = slice_of(load_recipe(name))
    results = train.run(recipe, tmp_path, verbose=0)
    assert results["epochs"] == 2 and results["classes"] == 6
    assert 0 <= results["top1"] <= results["top5"] <= 1
    assert results["seconds"] > 0 and results["images_per_second"] > 0
    if recipe.pairs is not None:
        assert results["verification"]["pairs"] == results["verification_flip"]["pairs"] == 600
        assert (tmp_path / "roc_over_training.png").exists()
    else:
        assert (tmp_path / "confusion.png").exists()
    assert (tmp_path / "report.html").exists() and (tmp_path / "last.keras").exists()


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_every_row_names_a_model_and_arguments_that_it_has(table, name):
    recipe = row_recipe(TABLES[table], name, options("--epochs", "7"), seed=3)
    assert (recipe.epochs, recipe.seed) == (7, 3)
    accepted = registry.model_signature(recipe.model).parameters
    assert set(recipe.model_arguments) <= set(accepted)


def commands_of_docs() -> list[list[str]]:
    """The arguments of each call of run_table.py in the section on tables of docs/training.md."""
    section = (ROOT / "docs" / "training.md").read_text().split("## One command per table")[1]
    section = section.split("\n## ")[0].replace("\\\n", " ")
    lines = [line for line in section.splitlines() if line.startswith("python training/run_table")]
    return [shlex.split(line)[2:] for line in lines]


def test_the_docs_have_a_command_for_each_table_at_full_length_and_at_a_reduced_one():
    """Parsing a command builds the recipe of each row."""
    found = [run_table.parse(arguments) for arguments in commands_of_docs()]
    full = [given for given in found if given.backend == "jax"]
    assert [given.name for given in full] == list(dict.fromkeys(g.name for g in full))
    assert {given.name for given in full} == set(TABLES)
    for given in full:
        assert given.precision == "mixed_bfloat16" and given.rows is None and not given.reduced
        for name, row in TABLES[given.name].rows.items():
            changed = row_recipe(TABLES[given.name], name, given, seed=0)
            assert changed.epochs == load_recipe(row.recipe).epochs
            assert changed.image_size == row.changes.get(
                "image_size", load_recipe(row.recipe).image_size
            )
    assert {given.name for given in found if given.reduced} == set(TABLES)


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_a_reduced_row_compares_something_in_less_time(table, name):
    full, reduced = (
        row_recipe(TABLES[table], name, options(*arguments), seed=0)
        for arguments in ([], ["--reduced"])
    )
    assert reduced.precision == "mixed_bfloat16" and reduced.model == full.model
    pixels = [recipe.epochs * recipe.image_size**2 for recipe in (reduced, full)]
    if reduced.ema_momentum is not None and reduced.images_per_class is not None:
        steps = reduced.epochs * 10 * reduced.images_per_class / reduced.batch_size
        assert reduced.ema_momentum**steps < 1e-3  # else the average is of the initial weights
    # The table on 306 identities was made for a CPU.
    assert pixels[0] < pixels[1] or table == "facerec_306"
    # A schedule that only warms up would compare nothing.
    assert reduced.schedule != "cosine" or reduced.warmup_epochs < reduced.epochs / 2
    given = row_recipe(TABLES[table], name, options("--reduced", "--epochs", "1"), seed=0)
    assert given.epochs == 1


@once
@pytest.mark.parametrize("name", ["resnet50_fct_enlarged", "resnet50_fct_pretrained"])
@pytest.mark.parametrize(("arguments", "side"), [([], 32), (["--reduced"], 16)])
def test_enlarged_images_give_the_maps_of_the_other_rows_with_weights_and_without(
    name, arguments, side, monkeypatch
):
    import keras_hybrid as kh
    from keras_hybrid.applications.imagenet import ImageNetWeights

    loaded = []
    monkeypatch.setattr(ImageNetWeights, "load", lambda self, model: loaded.append(self.network))
    given = options(*arguments)
    assert row_recipe(TABLES["resnet_fct"], "resnet50_fct", given, seed=0).image_size == side
    recipe = row_recipe(TABLES["resnet_fct"], name, given, seed=0)
    assert recipe.augmentation == {"crop_padding": recipe.image_size // 8, "flip_vertical": True}
    shape = (recipe.image_size, recipe.image_size, 3)
    model = kh.create_model(recipe.model, input_shape=shape, **recipe.model_arguments)
    assert loaded == (["ResNet50"] if name.endswith("pretrained") else [])
    # A CIFAR stem keeps the images' size; the modules halve what the first three stages give.
    sizes = [model.get_layer(f"fct{i}").output.shape[1] for i in range(3)]
    assert sizes == [side // 2, side // 4, side // 8]


def test_published_figures_belong_to_rows_and_are_percent():
    for table in TABLES.values():
        assert set(table.published) <= set(table.rows)
        assert all(1 < figure <= 100 for figure in table.published.values())


@once
def test_the_ablation_ends_in_cvt_and_in_the_full_model():
    """Table 6 with the parameters that the specification of ATC gives for its rows."""
    import keras_hybrid as kh

    counts = {}
    for name in TABLES["atc_ablation"].rows:
        recipe = row_recipe(TABLES["atc_ablation"], name, options(), seed=0)
        model = kh.create_model("atc_3", **recipe.model_arguments)
        counts[name] = sum(int(keras.ops.size(v)) for v in model.trainable_variables)
    # A residual projection has the parameters of the plain one.
    assert counts["cvt_3"] == counts["atc_3_residual_projection"] == 3_115_556
    assert counts["atc_3"] == counts["atc_3_residual_feed_forward"]
    assert round(counts["atc_3"] / 1e6, 4) == 2.8741
    assert round(counts["atc_3_res"] / 1e6, 4) == 3.2676


@pytest.mark.any_backend
def test_a_table_runs_what_is_missing_and_a_second_start_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])
    rows = {name: Row("quickstart", {"loss": name}) for name in ("cosface", "softmax")}
    monkeypatch.setitem(TABLES, "tiny", Table("none", rows))
    small = {
        k: v for k, v in cases.SMALL[cases.family_of("facerec_small")].items() if k != "input_shape"
    }
    size = cases.SMALL[cases.family_of("facerec_small")]["input_shape"][0]
    table = tmp_path / "tiny.csv"
    command = ["tiny", "--table", str(table), "--out", str(tmp_path / "runs")]
    command += ["--data", "synthetic:4x10", "--image-size", str(size), "--epochs", "1"]
    command += ["--batch-size", "8", "--pairs", "synthetic:20x6", "--export", "none"]
    command += ["--model-arguments", *(f"{k}={v}" for k, v in small.items())]
    command += ["--backend", keras.backend.backend()]
    assert run_table.main([*command, "--rows", "softmax"]) == 0
    assert run_table.main([*command, "--seeds", "0", "1"]) == 0
    assert run_table.main([*command, "--seeds", "0", "1"]) == 0
    fewer = ["--rows", "softmax", "--images-per-class", "4", "--test-images-per-class", "1"]
    fewer += ["--out", str(tmp_path / "fewer")]
    assert run_table.main([*command, *fewer]) == 0
    assert run_table.main([*command, *fewer]) == 0
    printed = capsys.readouterr().out
    assert printed.count("facerec_small: ") == 5  # what a run begins with
    assert "16 training and 4 test images" in printed
    with table.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["model"], row["seed"]) for row in found] == [
        ("softmax", "0"),
        ("cosface", "0"),
        ("cosface", "1"),
        ("softmax", "1"),
        ("softmax", "0"),
    ]
    assert [row["images"] for row in found] == ["32"] * 4 + ["16"]
    assert [row["images_per_class"] for row in found] == [""] * 4 + ["4"]
    for row in found:
        assert row["lfw"] == "" and float(row["parameters"]) > 0  # its pairs are not LFW's
        assert row["epochs"] == "1" and row["backend"] == keras.backend.backend()


@pytest.mark.any_backend
def test_a_run_whose_export_fails_has_its_line_and_stops_no_other(tmp_path, monkeypatch, capsys):
    results = {"top1": 0.5, "export": [{"format": "onnx", "error": "no such operator"}]}
    monkeypatch.setattr(train, "run", lambda *arguments, **options: results)
    monkeypatch.setattr(report, "check_export", lambda recipe: None)
    command = ["cct", "--export", "onnx", "--backend", keras.backend.backend(), "--seeds", "0", "1"]
    command += ["--table", str(tmp_path / "cct.csv"), "--out", str(tmp_path / "runs")]
    assert run_table.main(command) == 1
    told = capsys.readouterr().err
    for seed in (0, 1):
        assert f"{tmp_path / 'runs' / f'cct_7_3x1_{seed}'}: onnx: no such operator" in told
    assert "keras-hybrid export FOLDER/last.keras" in told
    with (tmp_path / "cct.csv").open(newline="") as file:
        assert [row["top1"] for row in csv.DictReader(file)] == ["0.5", "0.5"]
    assert run_table.main(command) == 0  # the runs are there


@once
def test_what_starts_runs_side_by_side_leaves_the_device_to_them(tmp_path, monkeypatch):
    names = ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    seen = []

    def check(recipe):
        seen.append([os.environ.get(name) for name in names])

    def start(command, env, **options):
        seen.append([env.get(name) for name in names])
        return types.SimpleNamespace(wait=lambda: 0, terminate=lambda: None)

    monkeypatch.setattr(train, "check", check)
    monkeypatch.setattr(run_table.subprocess, "Popen", start)
    command = ["cct", "--jobs", "2", "--table", str(tmp_path / "cct.csv")]
    assert run_table.main([*command, "--backend", "torch", "--out", str(tmp_path / "runs")]) == 0
    assert seen == [["", "cpu"], ["0,1", None]]
    assert [os.environ.get(name) for name in names] == ["0,1", None]


@once
def test_a_table_that_is_told_to_end_ends_its_runs(tmp_path, monkeypatch, capsys):
    """The runs are a script that says it is there and waits."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = tmp_path / "run.py"
    script.write_text(
        "import pathlib, signal\n"
        f"pathlib.Path({str(pipe)!r}).write_text('1')\n"
        "signal.alarm(60)\n"  # should nobody end it
        "signal.pause()\n"
    )

    def end_when_both_are_there():
        with os.fdopen(os.open(pipe, os.O_RDWR), "rb", buffering=0) as opened:
            opened.read(1)
            opened.read(1)
        os.kill(os.getpid(), signal.SIGTERM)

    former = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=end_when_both_are_there, daemon=True).start()
    monkeypatch.setattr(run_table, "__file__", str(script))
    command = ["san", "--jobs", "2", "--backend", "torch", "--table", str(tmp_path / "san.csv")]
    with pytest.raises(SystemExit) as ended:
        run_table.main([*command, "--out", str(tmp_path / "runs")])
    assert ended.value.code == 128 + signal.SIGTERM
    assert len(list((tmp_path / "runs").glob("*.log"))) == 2  # the other two rows did not begin
    assert capsys.readouterr().out.count(f"status -{signal.SIGTERM:d}") == 2
    assert signal.getsignal(signal.SIGTERM) == former


@once
@pytest.mark.slow
def test_runs_side_by_side_fill_one_table_and_a_failed_one_stops_no_other(tmp_path, capsys):
    arrays = tmp_path / "arrays.npz"
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), "uint8")
    np.savez(arrays, images=images, labels=np.arange(30) % 3)
    command = ["san", "--jobs", "2", "--data", str(arrays), "--test-fraction", "0.2"]
    command += ["--train-split", "none", "--test-split", "none", "--image-size", "16"]
    command += ["--epochs", "1", "--batch-size", "8", "--backend", "torch"]
    command += ["--table", str(tmp_path / "san.csv"), "--out", str(tmp_path / "runs")]
    rows = ["san_baseline_pairwise", "san_baseline_patchwise", "san_proposed_pairwise"]
    broken = tmp_path / "runs" / "san_proposed_pairwise_0"
    broken.parent.mkdir()
    broken.touch()  # a file where its folder should be
    assert run_table.main([*command, "--rows", *rows]) == 1
    with (tmp_path / "san.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert sorted(row["model"] for row in found) == rows[:2]
    printed = capsys.readouterr()
    assert "san_baseline_pairwise, seed 0: done" in printed.out
    assert f"1 of 3 runs did not end as they should: {broken}.log (status 1)" in printed.err
    assert "san_proposed_pairwise" in pathlib.Path(f"{broken}.log").read_text()
    assert run_table.main([*command, "--rows", *rows[:2]]) == 0  # nothing is left to do
    said = capsys.readouterr().out
    assert said.count(f"is in {tmp_path / 'san.csv'}, by: ") == 2


def test_a_row_whose_landmarks_are_missing_stops_the_table_before_the_first_row(tmp_path, capsys):
    """All rows would take hours before that one."""
    table = tmp_path / "faces.csv"
    table.write_text("file,label,split\na.png,0,train\nb.png,0,test\nc.png,1,train\n")
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).touch()
    command = ["facerec_306", "--data", str(table), "--out", str(tmp_path / "runs")]
    assert run_table.main([*command, "--backend", keras.backend.backend()]) == 1
    assert "has no landmarks: a .csv needs columns x0" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_argument_that_a_row_s_model_has_not_stops_the_table_before_the_first_row(capsys):
    command = ["san", "--data", "nowhere.npz", "--model-arguments", "depht=3"]
    assert run_table.main([*command, "--backend", keras.backend.backend()]) == 1
    assert "model_arguments has depht; san_baseline_pairwise takes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure_7"], "invalid choice"),
        (["san", "--rows", "san_10"], "san has san_baseline_pairwise"),
        (["san", "--seed", "1"], "--seeds instead"),
        (["san", "--model", "vit_ti16"], "choose some with --rows instead of --model vit_ti16"),
        (["san", "--jobs", "0"], "--jobs must be at least 1; got 0"),
        (["san", "--epochs", "ten"], "--epochs must be int"),
        (["cct", "--loss", "cosface"], "need loss='cross_entropy'"),
    ],
)
def test_a_wrong_command_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run_table.main(arguments)
    assert message in capsys.readouterr().err


def test_pairs_count_as_lfw_where_they_are_as_many():
    found = {"accuracy": 0.9, "accuracy_std": 0.01, "auc": 0.95, "xnorm": 7.0}
    lfw = {"same_pairs": 3000, "different_pairs": 3000, "fold_accuracies": [0.9] * 10}
    results = {"verification": {**found, **lfw}, "verification_flip": {**found, **lfw}}
    assert run_table.verified(results) == {
        "lfw": 0.9,
        "lfw_flip": 0.9,
        "lfw_std": 0.01,
        "lfw_auc": 0.95,
        "lfw_xnorm": 7.0,
    }
    results["verification"]["different_pairs"] = 300
    assert run_table.verified(results) == {}
