"""EfficientNet against Keras's own, whose ImageNet files are to fit by their layers' names."""

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from tests.cases import predict, relative_error


@pytest.mark.parametrize(
    ("name", "reference", "scale"),
    [("efficientnet_b0", "EfficientNetB0", 255.0), ("efficientnet_v2_s", "EfficientNetV2S", 1.0)],
)
def test_layers_and_features_are_those_of_keras_applications(name, reference, scale):
    shape = (33, 48, 3)
    arguments = {"include_preprocessing": False} if reference.endswith("V2S") else {}
    theirs = getattr(keras.applications, reference)(
        include_top=False, weights=None, input_shape=shape, **arguments
    )
    ours = kh.create_model(name, include_top=False, include_preprocessing=False, input_shape=shape)
    weighted = {layer.name: layer for layer in theirs.layers if layer.weights}
    weighted.pop("normalization", None)
    assert {layer.name for layer in ours.layers if layer.weights} == set(weighted)
    for layer in weighted.values():
        ours.get_layer(layer.name).set_weights(layer.get_weights())
    images = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype("float32")
    # EfficientNetB0 always divides by 255.
    assert relative_error(predict(ours, images), predict(theirs, scale * images)) <= 1e-5


@pytest.mark.parametrize("stem_activation", [None, "swish"])
def test_the_hybrid_continues_from_the_third_block_of_b0(stem_activation):
    shape = (32, 48, 3)
    theirs = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=shape)
    theirs.get_layer("stem_activation").activation = keras.activations.get(stem_activation)
    theirs = keras.Model(theirs.input, theirs.get_layer("block2b_add").output)
    ours = kh.create_model(
        "efficientvit_face",
        stem_activation=stem_activation,
        depth=0,
        include_top=False,
        include_preprocessing=False,
        input_shape=shape,
    )
    assert ours.output_shape == (None, 1 + 2 * 3, 512)
    ours = keras.Model(ours.input, ours.get_layer("block2b_add").output)
    for layer in ours.layers:
        if layer.weights:
            layer.set_weights(theirs.get_layer(layer.name).get_weights())
    images = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype("float32")
    # EfficientNetB0 always divides by 255.
    assert relative_error(predict(ours, images), predict(theirs, 255 * images)) <= 1e-5
