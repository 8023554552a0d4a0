"""Activations of an int8 file have the ranges of least error, where these bring it nearer."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_hybrid import cli, export
from tests.export.export_cases import NEEDS, randomize, skip_without

pytestmark = pytest.mark.any_backend

SIDE = 24


@pytest.fixture(scope="module")
def ranges():
    skip_without("ai_edge_litert")
    from keras_hybrid.export import ranges

    return ranges


@pytest.fixture(scope="module")
def model():
    """Third powers of sums of noise: a few values are far from all others."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3))
    x = layers.Rescaling(1 / 64, offset=-2)(image)
    for _ in range(2):
        x = layers.Conv2D(8, 3, kernel_initializer="he_normal")(x)
        x = layers.Multiply()([x, layers.Multiply()([x, x])])
        x = layers.Rescaling(0.2)(x)
    x = layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    return keras.Model(image, layers.Dense(6)(layers.Flatten()(x)))


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return generator.uniform(0, 255, (40, SIDE, SIDE, 3)).astype("float32")


def with_outliers() -> np.ndarray:
    """Values between -1 and 1 but for two."""
    values = np.random.default_rng(0).uniform(-1, 1, 400_000)
    values[[7, 70]] = 3, -2.5
    return values.astype("float32")


@pytest.mark.parametrize(("low", "high"), [(-3.0, 4.0), (0.0, 2.0), (-1.0, 0.0), (-70.0, 90.0)])
def test_the_error_is_that_of_the_nearest_of_256_levels(ranges, low, high):
    values = 3 * with_outliers()[:2000]
    scale = (high - low) / 255
    levels = scale * (np.arange(256) - np.round(-low / scale))
    nearest = levels[np.abs(values[:, None] - levels).argmin(axis=1)]
    expected = np.mean((nearest - values) ** 2)
    assert ranges.squared_error(values, low, high) == pytest.approx(expected, rel=1e-3)


def test_few_values_far_out_are_clipped_and_evenly_spread_ones_are_not(ranges):
    values = with_outliers()
    low, high = float(values.min()), float(values.max())
    found = ranges.least_error_range(values, low, high)
    assert low < found[0] < 0 < found[1] < high
    error = ranges.squared_error(values, *found)
    assert error < 0.5 * ranges.squared_error(values, low, high)
    finest = min(
        ranges.squared_error(values, a, b)
        for a in np.linspace(low, -0.5, 20)
        for b in np.linspace(0.5, high, 20)
    )
    assert error <= 1.05 * finest, "a finer search finds more"
    even = np.linspace(-1, 3, 5000, dtype="float32")
    assert ranges.least_error_range(even, -1.0, 3.0) == (-1.0, 3.0)


@pytest.mark.parametrize(
    ("values", "low", "high", "expected"),
    [
        ([0, 0, 0], 0.0, 0.0, (0.0, 0.0)),
        ([0, 0, 0], -1.0, 2.0, (-1.0, 2.0)),
        ([5, 5, 5], 5.0, 5.0, (0.0, 5.0)),
        ([-2, -2], -2.0, -2.0, (-2.0, 0.0)),
        ([1, np.inf], 1.0, np.inf, (0.0, np.inf)),
        ([1, np.nan], -1.0, 1.0, (-1.0, 1.0)),
    ],
    ids=["zeros", "zeros here", "a positive constant", "a negative one", "infinite", "no number"],
)
def test_a_range_holds_zero_and_what_cannot_be_narrowed_stays(ranges, values, low, high, expected):
    assert ranges.least_error_range(np.float32(values), low, high) == expected


def error(content_or_path, images, expected) -> float:
    """Relative error of a LiteRT file's answers."""
    from ai_edge_litert.interpreter import Interpreter

    key = "model_content" if isinstance(content_or_path, bytes) else "model_path"
    runner = Interpreter(**{key: content_or_path}).get_signature_runner("serving_default")
    actual = np.concatenate([runner(image=image[None])["output"] for image in images])
    return float(np.square(actual - expected).sum() / np.square(expected).sum())


@pytest.mark.slow
def test_a_file_is_nearer_to_the_model_than_the_converter_alone_makes_it(model, images, tmp_path):
    skip_without(*NEEDS["to_litert"])
    import tensorflow as tf

    calibration, unseen = np.split(images, [30])
    expected = keras.ops.convert_to_numpy(model.predict(unseen, verbose=0))
    report = export.to_litert(
        model, tmp_path / "ours.tflite", "int8", representative_data=calibration
    )
    export.to_saved_model(model, tmp_path / "saved")
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: ({"image": image[None]} for image in calibration)
    plain = error(converter.convert(), unseen, expected)
    ours = error(str(report.path), unseen, expected)
    assert ours < 0.7 * plain, (ours, plain)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="converts in this process")
def test_each_image_is_seen_alone_whatever_the_batch(ranges, model, images, tmp_path, monkeypatch):
    skip_without(*NEEDS["to_litert"])
    from keras_hybrid.export import conversion, formats

    seen = []
    observe = ranges.observe
    monkeypatch.setattr(ranges, "observe", lambda file, x: seen.extend(x) or observe(file, x))
    monkeypatch.setattr(
        formats,
        "run_conversion",
        lambda job, folder, backend: conversion.to_litert(job, conversion.load(job)),
    )
    export.to_litert(
        model, tmp_path / "model.tflite", "int8", representative_data=images[:5], batch_size=3
    )
    for batch, image in zip(seen, images[:5], strict=True):
        np.testing.assert_array_equal(batch, np.stack([image] * 3))


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="converts in this process")
@pytest.mark.parametrize("quantization", ["int8", "int8_cpu"])
def test_ranges_that_lead_further_away_are_not_taken(
    ranges, model, images, quantization, tmp_path, monkeypatch
):
    skip_without(*NEEDS["to_litert"])
    from keras_hybrid.export import conversion, formats

    def exported(name: str, function) -> bytes:
        monkeypatch.setattr(ranges, "with_least_error_ranges", function)
        path = tmp_path / name
        export.to_litert(model, path, quantization, representative_data=images[:8])
        return path.read_bytes()

    def absurd(calibrated, observation):
        file = ranges.litert_file.unpack(calibrated)
        for index in observation.samples:
            stated = file.subgraphs[0].tensors[index].quantization
            stated.min, stated.max = stated.min / 50, stated.max / 50
        return ranges.litert_file.pack(file)

    monkeypatch.setattr(
        formats,
        "run_conversion",
        lambda job, folder, backend: conversion.to_litert(job, conversion.load(job)),
    )
    least_error = exported("least.tflite", ranges.with_least_error_ranges)
    widest = exported("widest.tflite", lambda calibrated, observation: calibrated)
    assert exported("absurd.tflite", absurd) == widest
    assert least_error != widest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantization", "said"), [("int8", True), ("int8_cpu", True), ("dynamic", False)]
)
def test_the_command_says_where_int8_answers_otherwise(
    quantization, said, images, tmp_path, capsys
):
    """Differences of nearly equal sums, which eight bits do not hold."""
    skip_without(*NEEDS["to_litert"])
    image = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(4, 3, kernel_initializer="ones")(image)
    y = layers.Conv2D(4, 3, kernel_initializer="ones")(image)
    x = layers.Rescaling(1000.0)(layers.Subtract()([x, y]))
    x = layers.Dense(3)(layers.Flatten()(x))
    randomize(keras.Model(image, x)).save(tmp_path / "model.keras")
    np.savez(tmp_path / "images.npz", x=images.astype("uint8"), y=np.arange(len(images)) % 4)
    paths = [str(tmp_path / name) for name in ("model.keras", "out.tflite")]
    command = ["export", *paths, "--to", "litert", "--quantize", quantization]
    if quantization != "dynamic":
        command += ["--representative", str(tmp_path / "images.npz")]
    assert cli.main(command) == 0
    note = f"note: in {quantization} the model answers otherwise" in capsys.readouterr().err
    assert note is said
