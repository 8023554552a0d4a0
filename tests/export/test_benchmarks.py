"""What the export benchmarks decide themselves: what has passed, is missing, is comparable."""

import argparse
import csv
import importlib.util
import pathlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_hybrid as kh
from benchmarks import export_matrix, phone_latency, quantized_lfw, run_exported
from tests.export.export_cases import IMAGE_SHAPE, hybrid_network, randomize

ROOT = pathlib.Path(__file__).resolve().parents[2]

BUILT_IN = {"CONV_2D": 3, "GELU": 1}


@pytest.mark.parametrize(
    ("format", "operators", "difference", "cosine", "reason"),
    [
        ("float32", BUILT_IN, 1e-4, 1.0, ""),
        ("float32", BUILT_IN, 2e-4, 1.0, "difference 0.0002 above 0.0001"),
        ("float32", {**BUILT_IN, "FlexErf": 1}, 0.0, 1.0, "not built in: FlexErf"),
        ("saved_model", {"Conv2D": 3}, 1e-6, 1.0, ""),
        ("onnx", {"Conv": 3}, float("nan"), 1.0, "difference nan above"),
        ("float16", BUILT_IN, 1e-2, 0.9991, ""),
        ("dynamic", BUILT_IN, 0.5, 0.985, "cosine 0.9850 below 0.99"),
        ("int8", BUILT_IN, 0.5, 0.985, ""),
    ],
)
def test_a_file_passes_by_the_bound_of_its_format(format, operators, difference, cosine, reason):
    found = export_matrix.judge(format, operators, difference, cosine)
    assert reason in found and bool(reason) == bool(found)


def matrix_arguments(tmp_path, **more):
    given = {"formats": ["float32", "onnx"], "threads": 1, "weights": {}, "hardware": "a shelf"}
    return argparse.Namespace(table=tmp_path / "export.csv", **{**given, **more})


def test_rows_that_are_there_are_left_out_and_a_failure_is_a_row(tmp_path):
    given = matrix_arguments(tmp_path)
    assert export_matrix.missing(given, "vit_b16") == ["float32", "onnx"]
    export_matrix.add(given, "vit_b16", "float32", reason="", cosine=1.0)
    export_matrix.add(given, "vit_b16", "onnx", reason="ExportError:\n no such operator")
    assert export_matrix.missing(given, "vit_b16") == []
    assert export_matrix.missing(given, "vit_s16") == ["float32", "onnx"]
    with given.table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["passed"], row["reason"]) for row in rows] == [
        ("True", ""),
        ("False", "ExportError: no such operator"),
    ]
    # Trained weights, or another number of threads, are another row.
    for more in ({"threads": 2}, {"weights": {"vit_b16": "a/trained.keras"}}):
        other = matrix_arguments(tmp_path, **more)
        assert export_matrix.missing(other, "vit_b16") == ["float32", "onnx"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "no.zip"], "no.zip"),
        (["--weights", "vit_b61=FILE"], "not among the models: vit_b61"),
        (["--weights", "vit_b16=none.keras"], "a file that exists, received 'vit_b16=none.keras'"),
        (["--weights", "vit_b16"], "NAME=FILE of a file that exists, received 'vit_b16'"),
    ],
)
def test_a_wrong_argument_is_no_row_of_the_matrix(arguments, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "faces").mkdir()
    table, weights = tmp_path / "export.csv", tmp_path / "trained.keras"
    weights.touch()
    given = ["--images", str(tmp_path / "faces"), "--models", "vit_b16", "--table", str(table)]
    given += [argument.replace("FILE", str(weights)) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["export_matrix.py", *given])
    with pytest.raises((SystemExit, ValueError, OSError)) as caught:
        export_matrix.main()
    assert said in f"{caught.value} {capsys.readouterr().err}"
    assert not table.exists()


def load_for_accuracy(file):
    return quantized_lfw.load(argparse.Namespace(model=str(file), checkpoint=None))


def load_for_the_matrix(file):
    return export_matrix.load(str(file), "facerec_small")


@pytest.mark.parametrize("load", [load_for_accuracy, load_for_the_matrix])
def test_files_are_compared_with_a_model_in_float32_whatever_it_was_trained_in(load, tmp_path):
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        trained = randomize(hybrid_network())
    finally:
        keras.config.set_dtype_policy(former)
    trained.save(tmp_path / "trained.keras")
    expected = hybrid_network()
    expected.set_weights(trained.get_weights())
    images = np.random.default_rng(0).uniform(0, 255, (2, *IMAGE_SHAPE)).astype("float32")
    loaded = load(tmp_path / "trained.keras")
    assert loaded.name == trained.name
    found, expected = (
        kh.applications.embedding_model(model).predict(images, verbose=0)
        for model in (loaded, expected)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_page_marks_what_was_measured_in_the_precision_of_its_training():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate_export.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    figures = {"accuracy": ".9", "accuracy_std": ".01", "size_bytes": "9", "smallest_cosine": "1"}
    rows = [
        {"model": "hybrid", "kind": kind, "commit": commit, **figures}
        for kind, commit in (("keras", "56d9ad0"), ("float32", "56d9ad0"), ("keras", "0000000"))
    ]
    kinds = [line.split(" | ")[1] for line in generate.quantized(rows)[2:-1]]
    assert kinds == ["keras, mixed_bfloat16", "float32", "keras"]


def test_normalization_is_adapted_to_the_images_and_nothing_else_changes():
    image = keras.Input((4, 4, 3))
    x = layers.Dropout(0.5)(image)
    x = layers.BatchNormalization(name="norm", momentum=0.9)(x)
    model = keras.Model(image, x)
    images = np.random.default_rng(0).normal(3, 2, (16, 4, 4, 3)).astype("float32")
    export_matrix.adapt_normalization(model, images)
    norm = model.get_layer("norm")
    mean, variance = (
        keras.ops.convert_to_numpy(value) for value in (norm.moving_mean, norm.moving_variance)
    )
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-4)
    # Backends differ in whether they divide by n or by n - 1.
    np.testing.assert_allclose(variance, images.var(axis=(0, 1, 2)), rtol=1e-2)
    assert norm.momentum == 0.9 and model.layers[1].rate == 0.5


def test_calls_are_timed_at_least_three_times_by_clock_and_processor():
    times = run_exported.time_calls(lambda batch: sum(range(100_000)), np.zeros(1), seconds=0)
    assert times.shape == (3, 2) and (times > 0).all()


def test_accuracies_are_taken_from_equal_data_only(tmp_path):
    table = tmp_path / "lfw.csv"
    columns = ["model", "identities", "images", "image_size", "epochs", "seed", "flip", "accuracy"]
    rows = [
        ("facerec_small", 988, 19742, 64, 32, 0, False, 0.95),  # alone with 32 epochs
        ("facerec_small", 988, 19742, 64, 16, 0, False, 0.89),
        ("facerec_small", 988, 19742, 64, 16, 0, False, 0.91),  # by a later recipe
        ("facerec_small", 988, 19742, 64, 16, 0, True, 0.92),  # with the mirror image
        ("mobilefacenet", 988, 19742, 64, 16, 0, False, 0.90),
        ("mobilefacenet", 988, 19742, 112, 16, 0, False, 0.93),  # faster, or better
        ("iresnet100", 988, 19742, 64, 16, 0, False, 0.97),  # not asked for
    ]
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([columns, *rows])
    assert phone_latency.accuracies(table, phone_latency.MODELS) == {
        ("facerec_small", 64): 0.91,
        ("mobilefacenet", 64): 0.90,
        ("mobilefacenet", 112): 0.93,
    }
    assert phone_latency.accuracies(tmp_path / "none.csv", phone_latency.MODELS) == {}
