"""KP-RPE's landmarks and its lookup against the paper's definitions, written out in NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_hybrid as kh
from keras_hybrid.applications.kprpe import KeypointOffsets, KeypointRelativeBias
from tests.cases import IMAGES, predict, relative_error, small_model

RANDOM = np.random.default_rng(0)
LANDMARKS = RANDOM.uniform(size=(len(IMAGES), 5, 2)).astype("float32")


def bucket_ids(height: int, width: int) -> np.ndarray:
    """Look up the buckets' own numbers."""
    tokens = height * width
    numbers = np.tile(np.arange(49, dtype="float32"), (1, tokens, 1))
    return ops.convert_to_numpy(KeypointRelativeBias((height, width), 1)(numbers))[0, 0]


def with_bias(**arguments) -> keras.Model:
    """Build a tiny model whose landmarks have an effect."""
    model = small_model("kprpe_*", **arguments)
    linear = model.get_layer("keypoint_linear")
    random = np.random.default_rng(1)
    linear.set_weights([random.normal(size=weight.shape) for weight in linear.get_weights()])
    return model


def give_weights(source: keras.Model, target: keras.Model) -> None:
    """Copy the weights of ``source``; ``target`` may have further layers."""
    for layer in source.layers:
        if layer.weights:
            target.get_layer(layer.name).set_weights(layer.get_weights())


def test_buckets_are_those_of_the_authors():
    ids = bucket_ids(14, 14)
    assert ids[0, :14].tolist() == [24, 23, 22, 22] + 10 * [21]
    assert ids[13, :14].tolist() == 10 * [27] + [26, 26, 25, 24]
    assert ids[::14, 0].tolist() == [24, 31, 38, 38] + 10 * [45]
    assert ids.sum() == 921_984


def test_buckets_have_a_width():
    with pytest.raises(ValueError, match="ratio must be positive, got 0"):
        KeypointRelativeBias((2, 2), 1, ratio=0)


def test_each_query_looks_its_own_numbers_up():
    height, width, heads, block = 3, 5, 2, 1
    numbers = RANDOM.normal(size=(2, height * width, 3, heads, 49)).astype("float32")
    layer = KeypointRelativeBias((height, width), heads, block)
    bias = ops.convert_to_numpy(layer(numbers.reshape(2, height * width, -1)))
    ids = bucket_ids(height, width).astype(int)
    for query in range(height * width):
        expected = numbers[:, query, block][:, :, ids[query]]
        np.testing.assert_array_equal(bias[:, :, query], expected)


def test_offsets_point_from_landmarks_to_patch_centres():
    offsets = ops.convert_to_numpy(KeypointOffsets((2, 4))(LANDMARKS))
    for row in range(2):
        for column in range(4):
            center = np.array([(column + 0.5) / 4, (row + 0.5) / 2])
            expected = (center - LANDMARKS).reshape(len(IMAGES), 10)
            np.testing.assert_allclose(offsets[:, 4 * row + column], expected, atol=1e-6)


def test_it_starts_as_the_plain_vit():
    plain = small_model("kprpe_*", landmarks=None)
    for landmarks, inputs in (("given", [IMAGES, LANDMARKS]), ("learned", IMAGES)):
        model = small_model("kprpe_*", landmarks=landmarks)
        give_weights(plain, model)
        assert relative_error(predict(model, inputs), predict(plain, IMAGES)) <= 1e-6


def test_given_landmarks_are_a_second_input_that_matters():
    model = with_bias(landmarks="given")
    assert [tensor.name for tensor in model.inputs] == ["image", "landmarks"]
    exchanged = LANDMARKS[..., ::-1]
    difference = predict(model, [IMAGES, exchanged]) - predict(model, [IMAGES, LANDMARKS])
    assert np.abs(difference).max() > 1e-3
    embedder = kh.applications.embedding_model(model)
    assert predict(embedder, [IMAGES, LANDMARKS]).shape == (len(IMAGES), 8)


def test_landmarks_may_come_from_the_readers_own_aligner():
    image = keras.Input((16, 16, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    points = keras.layers.Reshape((5, 2))(keras.layers.Dense(10, name="aligner")(x))
    model = with_bias(input_tensor=image, input_shape=None, landmarks=points)
    assert model.inputs == [image]
    given = with_bias(landmarks="given")
    give_weights(given, model)
    inputs = [IMAGES, predict(keras.Model(image, points), IMAGES)]
    assert relative_error(predict(model, IMAGES), predict(given, inputs)) <= 1e-6


@pytest.mark.parametrize("landmarks", ["aligned", 5, keras.Input((4, 2))])
def test_other_landmarks_are_refused(landmarks):
    with pytest.raises(ValueError, match="landmarks must be 'learned', 'given', None or a Keras"):
        small_model("kprpe_*", landmarks=landmarks)


def test_learned_landmarks_start_aligned_and_learn_from_recognition():
    model = with_bias()
    points = keras.Model(model.input, model.get_layer("landmarks").output)
    nose = np.array([56.0252, 71.7366]) / 112
    before = predict(points, IMAGES)
    np.testing.assert_allclose(before[:, 2], np.tile(nose, (len(IMAGES), 1)), atol=1e-5)
    model.compile(keras.optimizers.Adam(1e-2), loss=kh.losses.ArcFace())
    model.fit(IMAGES, np.arange(8) % 3, batch_size=8, epochs=3, verbose=0)
    after = predict(points, IMAGES)
    assert after.shape == (len(IMAGES), 5, 2) and after.min() >= 0 and after.max() <= 1
    assert np.ptp(after, axis=0).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "outputs"),
    [
        ({}, 49 * 2 * 2),
        ({"share_heads": True}, 49 * 2),
        ({"share_blocks": True}, 49 * 2),
        ({"share_heads": True, "share_blocks": True}, 49),
        ({"bucket_ratio": 0.9}, 9 * 2 * 2),
    ],
)
def test_heads_and_blocks_may_share_their_numbers(arguments, outputs):
    model = with_bias(**arguments)
    assert model.get_layer("keypoint_linear").units == outputs
    assert np.isfinite(predict(model, IMAGES)).all()
