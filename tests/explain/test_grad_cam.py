"""Grad-CAM on models whose answer is known, and on the zoo."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_hybrid as kh
from tests.explain.models import (
    SIZE,
    photographs,
    spread,
    tiny_cct,
    tiny_cvt,
    tiny_facerec,
    tiny_facerec_small,
    tiny_vit,
)


def red_and_blue(height=16, width=16):
    """Two images: red above and blue below on the left half; then the other way round."""
    image = np.zeros((2, height, width, 3), "uint8")
    half = height // 2
    image[0, :half, : width // 2, 0] = 255
    image[0, half:, : width // 2, 2] = 255
    image[1] = image[0, ::-1]
    return image


def colour_scores(x):
    """Class 0 counts red, class 1 counts blue and dislikes red."""
    weights = np.array([[1.0, -1.0], [0.0, 0.0], [0.0, 1.0]])
    pooled = (
        layers.GlobalAveragePooling2D() if len(x.shape) == 4 else layers.GlobalAveragePooling1D()
    )
    scores = layers.Dense(2, use_bias=False, name="predictions")
    y = scores(pooled(x))
    scores.kernel.assign(weights)
    return y


def colour_cnn(height=16, width=16):
    image = keras.Input((height, width, 3))
    x = layers.Rescaling(1 / 255)(image)
    conv = layers.Conv2D(3, 1, activation="relu", use_bias=False, name="colours")
    x = conv(x)
    conv.kernel.assign(np.eye(3).reshape(1, 1, 3, 3))
    return keras.Model(image, colour_scores(x), name="colour_cnn")


def colour_tokens(height=16, width=16, class_token=False):
    """Patches of 4×4, each token the mean colour of its patch."""
    image = keras.Input((height, width, 3))
    x = kh.layers.ImageToPatches(4)(layers.Rescaling(1 / 255)(image))
    dense = layers.Dense(3, use_bias=False, name="patch_colours")
    x = dense(x)
    dense.kernel.assign(np.tile(np.eye(3), (16, 1)) / 16)
    if class_token:
        x = kh.layers.ClassToken(initializer="zeros")(x)
    return keras.Model(image, colour_scores(layers.Activation("linear", name="tokens")(x)))


@pytest.mark.parametrize("build", [colour_cnn, colour_tokens])
def test_the_map_lies_where_the_class_is(build):
    images = red_and_blue()
    red = kh.explain.grad_cam(build(), images, class_index=0)
    assert red.shape == (2, 16, 16)
    assert red.dtype == np.float32
    # Inside the patch that touches no border of the red square, and far from it.
    assert red[0, 2:6, 2:6].min() == pytest.approx(1, abs=1e-5)
    assert red[0, 10:].max() == pytest.approx(0, abs=1e-6)
    assert red[1, 10:14, 2:6].min() == pytest.approx(1, abs=1e-5)
    assert red[1, :6].max() == pytest.approx(0, abs=1e-6)
    blue = kh.explain.grad_cam(build(), images, class_index=1)
    np.testing.assert_allclose(blue[0], red[1], atol=1e-5)


def test_the_map_is_the_papers_equation():
    model, images = colour_cnn(), photographs(3, 16, 16)
    weights = np.array([[0.7, 0.5], [-1.1, -0.9], [0.4, 0.6]])
    model.get_layer("predictions").kernel.assign(weights)
    cam = kh.explain.grad_cam(model, images, class_index=1)
    expected = np.maximum(images / 255 @ weights[:, 1], 0)
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(cam, expected, atol=1e-5)


def test_without_a_class_the_predicted_one_of_each_image_is_explained():
    model = colour_cnn()
    images = np.stack([red_and_blue()[0], red_and_blue()[0]])
    images[1, :8] = 0  # only blue is left
    assert model.predict(images, verbose=0).argmax(axis=1).tolist() == [0, 1]
    np.testing.assert_array_equal(
        kh.explain.grad_cam(model, images), kh.explain.grad_cam(model, images, class_index=[0, 1])
    )


def test_a_class_for_each_image_and_batches_of_any_size():
    model, images = colour_cnn(), photographs(5, 16, 16)
    classes = np.array([0, 1, 1, 0, 1])
    cam = kh.explain.grad_cam(model, images, class_index=classes, batch_size=2)
    for i, class_index in enumerate(classes):
        one = kh.explain.grad_cam(model, images[i : i + 1], class_index=int(class_index))
        np.testing.assert_allclose(cam[i], one[0], atol=1e-5)


@pytest.mark.parametrize("floatx", ["float64", "float16"])
def test_maps_do_not_depend_on_floatx(floatx):
    model, images = tiny_cct(), photographs()
    expected = kh.explain.grad_cam(model, images)
    former = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        found = kh.explain.grad_cam(model, images)
    finally:
        keras.config.set_floatx(former)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("squashing", ["softmax", "sigmoid", "layer", "nested", "ensemble"])
def test_a_class_that_is_certain_is_explained_by_what_the_softmax_takes(squashing):
    """Behind a softmax or sigmoid of 1 the gradient is 0 throughout."""
    images, model = photographs(2, 16, 16), colour_cnn()
    certain = np.array([[900.0, -9.0], [0.0, 0.0], [0.0, 9.0]])
    model.get_layer("predictions").kernel.assign(certain)
    expected = kh.explain.grad_cam(model, images, class_index=0)
    if squashing in ("softmax", "sigmoid"):
        activated = colour_cnn()
        activated.get_layer("predictions").kernel.assign(certain)
        activated.get_layer("predictions").activation = keras.activations.get(squashing)
    elif squashing == "layer":
        activated = keras.Model(model.input, layers.Softmax()(model.output))
    else:
        head = keras.Sequential([layers.Dense(2, use_bias=False, activation="softmax")])
        pooled = model.layers[-2].output
        activated = keras.Model(model.input, head(pooled))
        if squashing == "ensemble":
            mean = layers.Average()([layers.Softmax()(model.output), activated.output])
            activated = keras.Model(model.input, mean)
        head.layers[0].kernel.assign(certain)
    scores = activated.predict(images, verbose=0)
    assert scores[:, 0].tolist() == [1, 1]
    found = kh.explain.grad_cam(activated, images)  # of the class with the highest score
    assert expected.max() == 1
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(activated.predict(images, verbose=0), scores)


def test_nothing_for_the_class_is_a_map_of_zeros():
    images = np.zeros((1, 16, 16, 3), "uint8")
    assert not kh.explain.grad_cam(colour_cnn(), images, class_index=0).any()


def test_a_class_token_is_left_out_of_the_map():
    images = red_and_blue()
    with_token = kh.explain.grad_cam(colour_tokens(class_token=True), images, 0, layer="tokens")
    without = kh.explain.grad_cam(colour_tokens(), images, 0, layer="tokens")
    np.testing.assert_allclose(with_token, without, atol=1e-5)


def test_tokens_of_an_oblong_image_keep_its_proportions():
    images = red_and_blue(32, 16)
    cam = kh.explain.grad_cam(colour_tokens(32, 16), images, 0)
    assert cam.shape == (2, 32, 16)
    assert cam[0, 2:14, 2:6].min() == pytest.approx(1, abs=1e-5)
    assert cam[0, 18:].max() == pytest.approx(0, abs=1e-6)


def test_both_arms_of_a_branch_count():
    """A layer that one arm alone passes through is not the default."""
    image = keras.Input((16, 16, 3))
    x = layers.Activation("linear", name="whole")(image)
    arm = layers.Conv2D(3, 1, name="arm")(x)
    pooled = [layers.GlobalAveragePooling2D()(y) for y in (x, arm)]
    model = keras.Model(image, layers.Dense(2)(layers.Concatenate()(pooled)))
    assert kh.explain.default_layer(model) == "whole"


def test_where_branches_meet_at_the_score_each_has_its_layer_and_none_is_chosen():
    image = keras.Input((16, 16, 3))
    arms = [layers.Conv2D(3, 1, name=name)(image) for name in ("left", "right")]
    pooled = [layers.GlobalAveragePooling2D()(arm) for arm in arms]
    model = keras.Model(image, layers.Dense(2)(layers.Concatenate()(pooled)), name="arms")
    assert kh.explain.default_layers(model) == ["left", "right"]
    with pytest.raises(ValueError, match=r"'arms'.*side by side.*left, right"):
        kh.explain.grad_cam(model, photographs(1, 16, 16))
    for layer in ("left", "right"):
        cam = kh.explain.grad_cam(model, photographs(1, 16, 16), 0, layer)
        assert cam.shape == (1, 16, 16)


def test_each_module_of_resnet_fct_is_explained_by_its_name():
    """The report's figures 3 to 5 show Grad-CAM of one module each."""
    model = spread(
        kh.applications.ResNetFCT(
            input_shape=(SIZE, SIZE, 3),
            stem_channels=4,
            depths=(1, 1, 1),
            widths=(4, 4, 8),
            dim=8,
            num_heads=2,
            classes=3,
        )
    )
    assert kh.explain.default_layers(model) == ["fct0", "fct1", "fct2"]
    images = photographs()
    classes = model.predict(images, verbose=0).argmax(axis=1)
    weights = keras.ops.convert_to_numpy(model.get_layer("predictions").kernel)
    for i, side in enumerate((16, 8, 4)):
        layer = model.get_layer(f"fct{i}")
        assert layer.output.shape[1:3] == (side, side)
        # The head averages each module's cells, so its weights are the gradients.
        features = keras.Model(model.inputs, layer.output).predict(images, verbose=0)
        expected = np.einsum("nhwc,cn->nhw", features, weights[8 * i : 8 * i + 8, classes])
        expected = keras.ops.image.resize(
            np.maximum(expected, 0)[..., np.newaxis], (SIZE, SIZE), data_format="channels_last"
        )
        expected = keras.ops.convert_to_numpy(expected)[..., 0]
        expected /= expected.max(axis=(1, 2), keepdims=True)
        cam = kh.explain.grad_cam(model, images, layer=layer.name)
        np.testing.assert_allclose(cam, expected, atol=1e-3)


def test_a_reshaped_map_goes_by_its_own_name():
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same", name="map")(image)
    x = layers.GlobalAveragePooling1D()(layers.Reshape((256, 4))(x))
    assert kh.explain.default_layer(keras.Model(image, layers.Dense(2)(x))) == "map"


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (tiny_facerec, "stride08"),
        (tiny_facerec_small, "stride08"),
        (tiny_cct, "stride04"),
        # The patches' last tokens reach no score in a model that reads its class token.
        (tiny_vit, "block1_norm1"),
        (tiny_cvt, "stage1_block0_norm1"),
    ],
)
def test_the_zoo_is_explained_by_default(build, layer):
    model, images = build(), photographs()
    assert kh.explain.default_layer(model) == layer
    cam = kh.explain.grad_cam(model, images)
    assert cam.shape == (2, 32, 32)
    assert np.isfinite(cam).all()
    assert cam.min() >= 0
    np.testing.assert_array_equal(cam.max(axis=(1, 2)), 1)


def test_a_model_within_a_sequential_model_is_explained_as_if_it_were_not():
    backbone = tiny_cct(include_top=False, name="backbone")
    head = [layers.GlobalAveragePooling1D(), layers.Dense(3)]
    nested = keras.Sequential([keras.Input((32, 32, 3)), backbone, *head])
    flat = keras.Model(backbone.inputs, head[1](head[0](backbone.outputs[0])))
    head[1].kernel.assign(np.random.default_rng(5).normal(size=(16, 3)))
    assert kh.explain.default_layer(nested) == "backbone"
    cams = [kh.explain.grad_cam(model, photographs()) for model in (nested, flat)]
    assert cams[0].max() == 1
    np.testing.assert_allclose(cams[0], cams[1], atol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_maps_are_float32_and_those_of_float32(policy):
    images = red_and_blue()
    plain = kh.explain.grad_cam(colour_cnn(), images, 0)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = colour_cnn()
    finally:
        keras.config.set_dtype_policy(before)
    cam = kh.explain.grad_cam(model, images, 0)
    assert cam.dtype == np.float32
    np.testing.assert_allclose(cam, plain, atol=0.02)


def test_the_model_is_left_as_it_was():
    model, images = tiny_facerec(), photographs()
    before = model.predict(images, verbose=0)
    kh.explain.grad_cam(model, images)
    assert all("call" not in vars(layer) for layer in model.layers)
    np.testing.assert_array_equal(model.predict(images, verbose=0), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "nowhere"}, "no layer named 'nowhere'.*colours"),
        ({"layer": "colour"}, r"no layer named 'colour'\. Among its 3 .* are colours\."),
        ({"layer": "predictions"}, "layer='predictions' puts out .* neither a map"),
        ({"class_index": 2}, r"class_index must be in \[0, 2\), got 2"),
        ({"class_index": [0, 1, 1]}, "2 integers, one for each image"),
        ({"class_index": 0.5}, "class_index must be None, an integer"),
        ({"images": np.zeros((16, 16, 3))}, r"images must have shape .* got \(16, 16, 3\)"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    arguments = {"images": red_and_blue(), **arguments}
    with pytest.raises(ValueError, match=message):
        kh.explain.grad_cam(colour_cnn(), **arguments)


def test_a_model_without_scores_is_refused():
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, layers.Conv2D(2, 1)(image))
    with pytest.raises(ValueError, match=r"one output \(batch, classes\)"):
        kh.explain.grad_cam(model, np.zeros((1, 8, 8, 3)))
