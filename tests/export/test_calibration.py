"""An image that a network answers out of all proportion calibrates no int8 file."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_hybrid import export
from keras_hybrid.export.calibration import images_left_out
from tests.export.export_cases import NEEDS, randomize, skip_without

SIDE = 8
COUNT = 40


@pytest.fixture(scope="module")
def model():
    """Fourth powers: of an image eight times as bright they are 4,096 times as large."""
    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3))
    x = layers.Rescaling(1 / 255)(image)
    x = layers.Conv2D(6, 3, activation="relu", kernel_initializer=keras.initializers.Constant(0.1))(
        x
    )
    x = layers.Multiply()([x, x])
    x = layers.Multiply()([x, x])
    return randomize(keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x))))


def images(*bright: int) -> np.ndarray:
    """Dark images of noise, and bright ones at the places given."""
    x = np.random.default_rng(0).uniform(0, 30, (COUNT, SIDE, SIDE, 3))
    for place, index in enumerate(bright):
        x[index] *= 8 - place
    return x.astype("float32")


@pytest.mark.parametrize(
    ("bright", "expected"),
    [((), []), ((7,), [7]), ((31, 7), [7, 31]), ((31, 7, 20), [7, 31])],
    ids=["none", "one", "two", "one in twenty at most, the furthest"],
)
def test_what_lies_far_beyond_the_median_image_is_left_out(model, bright, expected):
    assert images_left_out(model, images(*bright)) == expected


class Windows(layers.Layer):
    """Cuts maps into halves: (batch, height, …) → (2 · batch, height / 2, …)."""

    def call(self, x):
        return keras.ops.reshape(x, (-1, SIDE // 2, SIDE, 3))


class Table(layers.Layer):
    """The same numbers for every image: (1, 5)."""

    def call(self, x):
        return keras.ops.ones((1, 5)) + 0 * keras.ops.mean(x)


def within(image, inner):
    """A model that is called within another."""
    return layers.Dense(2)(inner(image))


def called_twice(image, inner):
    """A layer that has no one output."""
    double = layers.Add()
    x = inner(image)
    return double([double([x, x]), x])


def plain_operations(image, inner):
    return keras.ops.square(inner(image) + 1.0)


def windows(image, inner):
    halves = layers.GlobalAveragePooling2D()(Windows()(image))
    return [inner(image), halves]


def table(image, inner):
    return layers.Add()([inner(image), Table()(image)])


@pytest.mark.parametrize("join", [within, called_twice, plain_operations, windows, table])
def test_any_functional_model_is_looked_at(model, join):
    image = keras.Input((SIDE, SIDE, 3))
    outer = keras.Model(image, join(image, model))
    assert images_left_out(outer, images(7)) == [7]
    assert images_left_out(outer, images()) == []


def test_a_sequential_model_is_looked_at(model):
    assert images_left_out(keras.Sequential([model, layers.Dense(2)]), images(7)) == [7]


def test_of_few_images_none_is_left_out_nor_of_a_fixed_batch(model):
    assert images_left_out(model, images(3)[:19]) == []
    assert images_left_out(model, images(3)[:20]) == [3]
    image = keras.Input(batch_shape=(4, SIDE, SIDE, 3))
    assert images_left_out(keras.Model(image, model(image)), images(3)) == []


def test_numbers_that_are_none_are_left_out(model):
    x = images()
    x[5] = np.nan
    assert images_left_out(model, x) == [5]


@pytest.mark.slow
@pytest.mark.any_backend
@pytest.mark.parametrize("quantization", ["int8", "int8_cpu"])
def test_a_file_is_that_of_the_other_images_and_the_report_says_which_it_was(
    model, quantization, tmp_path
):
    skip_without(*NEEDS["to_litert"])
    x = images(7)

    def exported(name, representative_data):
        return export.to_litert(
            model, tmp_path / name, quantization, representative_data=representative_data
        )

    report = exported("all.tflite", x)
    assert report.left_out == (7,) and report.to_dict()["left_out"] == (7,)
    others = exported("others.tflite", np.delete(x, 7, axis=0))
    assert others.left_out == () and others.cosine >= 0.98
    assert report.path.read_bytes() == others.path.read_bytes()
