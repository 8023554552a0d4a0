"""EfficientNet against Keras's own, whose ImageNet files are to fit by their layers' names."""

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from tests.cases import predict, relative_error, without_weights

pytestmark = pytest.mark.any_backend

SHAPE = (33, 48, 3)
BARE = {"include_top": False, "include_preprocessing": False}
BOTH = pytest.mark.parametrize(
    ("name", "reference"),
    [("efficientnet_b0", "EfficientNetB0"), ("efficientnet_v2_s", "EfficientNetV2S")],
)


def keras_model(reference: str, shape=SHAPE) -> tuple[keras.Model, float]:
    """Return Keras's features of normalised images, and what to multiply these by beforehand."""
    builder = getattr(keras.applications, reference)
    if reference == "EfficientNetB0":  # always divides by 255
        return builder(include_top=False, weights=None, input_shape=shape), 255.0
    return builder(weights=None, input_shape=shape, **BARE), 1.0


def images(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype("float32")


@BOTH
def test_weights_have_the_names_and_shapes_of_keras_applications(name, reference):
    with without_weights():
        models = keras_model(reference)[0], kh.create_model(name, **BARE, input_shape=SHAPE)
    theirs, ours = (
        {
            layer.name: [v.shape for v in layer.weights]
            for layer in model.layers
            # It has no name of its own: Keras numbers those of a process.
            if layer.weights and not isinstance(layer, keras.layers.Normalization)
        }
        for model in models
    )
    assert ours == theirs


@pytest.mark.slow
@BOTH
def test_features_are_those_of_keras_applications(name, reference):
    theirs, scale = keras_model(reference)
    ours = kh.create_model(name, **BARE, input_shape=SHAPE)
    for layer in ours.layers:
        if layer.weights:
            layer.set_weights(theirs.get_layer(layer.name).get_weights())
    error = relative_error(predict(ours, images()), predict(theirs, scale * images()))
    assert error <= 1e-5


@pytest.mark.parametrize("stem_activation", [None, "swish"])
def test_the_hybrid_continues_from_the_third_block_of_b0(stem_activation):
    shape = (32, 48, 3)
    theirs, scale = keras_model("EfficientNetB0", shape)
    theirs.get_layer("stem_activation").activation = keras.activations.get(stem_activation)
    theirs = keras.Model(theirs.input, theirs.get_layer("block2b_add").output)
    ours = kh.create_model(
        "efficientvit_face", **BARE, stem_activation=stem_activation, depth=1, input_shape=shape
    )
    assert ours.output_shape == (None, 1 + 2 * 3, 512)
    ours = keras.Model(ours.input, ours.get_layer("block2b_add").output)
    for layer in ours.layers:
        if layer.weights:
            layer.set_weights(theirs.get_layer(layer.name).get_weights())
    error = relative_error(predict(ours, images(shape)), predict(theirs, scale * images(shape)))
    assert error <= 1e-5
