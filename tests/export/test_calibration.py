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


def test_tensors_that_are_not_of_an_image_are_not_looked_at(model):
    """A table of positions has the same values for all images, and a batch of its own."""
    table = keras.ops.ones((1, 5))
    features = layers.Add()([model.output, layers.Rescaling(2.0)(table)])
    assert images_left_out(keras.Model(model.input, features), images(7)) == [7]


def test_few_images_and_layers_that_are_called_twice_leave_nothing_out(model):
    assert images_left_out(model, images(3)[:19]) == []
    image = keras.Input((4,))
    twice = layers.Dense(4)
    shared = keras.Model(image, twice(twice(image)))
    assert images_left_out(shared, np.ones((COUNT, 4))) == []


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
