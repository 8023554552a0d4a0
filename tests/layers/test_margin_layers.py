"""Cosine classifiers and the margin layers."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_hybrid import losses
from keras_hybrid.layers.margin import (
    ArcFace,
    CosFace,
    CosineClassifier,
    record_embedding_norms,
    recorded_embedding_norms,
)
from tests.gradients import value_and_gradient

RANDOM = np.random.default_rng(0)
EMBEDDING = RANDOM.normal(size=(4, 8)).astype("float32") * 10
LABELS = np.array([0, 2, 1, 4])
HALVES = {"mixed_bfloat16": "bfloat16", "mixed_float16": "float16"}


def expected_cosine(embedding, centers):
    embedding = embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)
    centers = centers / np.linalg.norm(centers, axis=-1, keepdims=True)
    return embedding @ np.swapaxes(centers, -1, -2)


def test_cosine_is_that_of_embedding_and_centre():
    layer = CosineClassifier(5)
    cosine = ops.convert_to_numpy(layer(EMBEDDING))
    (centers,) = layer.get_weights()
    assert centers.shape == (5, 8)
    assert layer.weights[0].name == "centers"
    np.testing.assert_allclose(cosine, expected_cosine(EMBEDDING, centers), atol=1e-6)


def test_several_centres_per_class_count_by_the_nearest():
    layer = CosineClassifier(5, centers_per_class=3)
    cosine = ops.convert_to_numpy(layer(EMBEDDING))
    (centers,) = layer.get_weights()
    assert centers.shape == (5, 3, 8)
    each = np.stack([expected_cosine(EMBEDDING, centers[:, k]) for k in range(3)])
    np.testing.assert_allclose(cosine, each.max(axis=0), atol=1e-6)


def test_centres_are_xavier_whatever_their_number():
    limit = np.sqrt(6 / (100 * 3 + 64))
    layer = CosineClassifier(100, centers_per_class=3)
    layer.build((None, 64))
    largest = np.abs(layer.get_weights()[0]).max()
    assert 0.95 * limit < largest <= limit * (1 + 1e-6)  # float32 rounds the limit


@pytest.mark.parametrize("policy", ["float32", *HALVES])
def test_cosines_are_float32_to_full_precision_under_every_policy(policy):
    layer = CosineClassifier(5, dtype=policy)
    cosine = layer(EMBEDDING)
    assert keras.backend.standardize_dtype(cosine.dtype) == "float32"
    expected = expected_cosine(EMBEDDING, ops.convert_to_numpy(layer.centers.value))
    np.testing.assert_allclose(ops.convert_to_numpy(cosine), expected, atol=1e-6)
    spec = layer(keras.KerasTensor((None, 8), dtype=HALVES.get(policy, "float32")))
    assert (spec.shape, spec.dtype) == ((None, 5), "float32")


@pytest.mark.parametrize("policy", HALVES)
def test_large_half_precision_embeddings_do_not_overflow(policy):
    embedding = ops.cast(np.full((1, 512), 200.0), HALVES[policy])
    with record_embedding_norms() as norms:
        cosine = CosineClassifier(3, dtype=policy)(embedding)
    assert np.all(np.isfinite(ops.convert_to_numpy(cosine)))
    np.testing.assert_allclose(ops.convert_to_numpy(norms[0]), [200 * 512**0.5], rtol=1e-5)


def test_cosines_stay_within_one():
    layer = CosineClassifier(64)
    layer.build((None, 64))
    centers = RANDOM.normal(size=(64, 64)).astype("float32")
    layer.set_weights([centers])
    cosine = ops.convert_to_numpy(layer(np.concatenate([centers, -7 * centers])))
    assert np.abs(cosine).max() <= 1
    np.testing.assert_allclose(np.diag(cosine), 1, atol=1e-6)


@pytest.mark.parametrize("layer", [CosineClassifier(5), CosineClassifier(5, 2), ArcFace(5)])
def test_gradient_is_finite_also_at_zero_and_at_a_centre(layer):
    layer.build((None, 8))
    centers = layer.get_weights()[0].reshape(-1, 8)
    embedding = np.stack([np.zeros(8, "float32"), centers[0], -centers[0]])
    arguments = () if isinstance(layer, CosineClassifier) else (np.array([0, 0, 0]),)
    value, gradient = value_and_gradient(lambda x: layer(x, *arguments), embedding)
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    ("layer", "loss"),
    [
        (ArcFace(5, 0.3, 16.0), losses.ArcFace(0.3, 16.0)),
        (ArcFace(5, gradient="straight_through"), losses.ArcFace(gradient="straight_through")),
        (ArcFace(5, easy_margin=True), losses.ArcFace(easy_margin=True)),
        (ArcFace(5, centers_per_class=2), losses.ArcFace()),
        (CosFace(5, 0.2, 16.0), losses.CosFace(0.2, 16.0)),
    ],
    ids=["arc", "straight through", "easy", "sub-centre", "cos"],
)
@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], np.eye(5, dtype="float32")[LABELS]])
def test_a_margin_layer_equals_its_loss_on_a_classifier(layer, loss, labels):
    layer = type(layer).from_config(layer.get_config())
    layer.build((None, 8))
    classifier = CosineClassifier(5, layer.centers_per_class)
    classifier.build((None, 8))
    classifier.set_weights(layer.get_weights())
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ours, gradient = value_and_gradient(lambda x: loss(labels, classifier(x)), EMBEDDING)
    theirs, expected = value_and_gradient(
        lambda x: crossentropy(LABELS, layer(x, labels)), EMBEDDING
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", [ArcFace(5, scale=16.0), CosFace(5, scale=16.0)])
def test_without_labels_there_is_no_margin(layer):
    logits = ops.convert_to_numpy(layer(EMBEDDING))
    expected = 16 * expected_cosine(EMBEDDING, layer.get_weights()[0])
    np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize("make", [ArcFace, CosFace])
def test_a_margin_layer_works_in_a_functional_model_of_two_inputs(make, tmp_path):
    images, ids = keras.Input((8,)), keras.Input((), dtype="int32")
    head = make(5, name="head")
    model = keras.Model([images, ids], head(images, ids))
    predictor = keras.Model(images, head(images))
    assert model.output_shape == predictor.output_shape == (None, 5)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit([EMBEDDING, LABELS], LABELS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.predict([EMBEDDING, LABELS], verbose=0)
    np.testing.assert_allclose(
        loaded.predict([EMBEDDING, LABELS], verbose=0), expected, rtol=1e-5, atol=1e-5
    )
    plain = predictor.predict(EMBEDDING, verbose=0)
    assert np.all(plain[np.arange(4), LABELS] > expected[np.arange(4), LABELS])


@pytest.mark.parametrize(
    "layer",
    [
        CosineClassifier(5, 2, kernel_initializer="he_normal", name="predictions"),
        ArcFace(5, 0.3, 16.0, "straight_through", True, centers_per_class=2),
        CosFace(5, 0.2, 16.0),
    ],
    ids=["cosine", "arc", "cos"],
)
def test_layers_serialize_with_every_argument(layer):
    copy = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(copy) is type(layer)
    assert copy.get_config() == layer.get_config()


def test_counts_of_numpy_are_taken_and_kept_as_pythons():
    config = CosineClassifier(np.int64(6), np.int32(2)).get_config()
    assert (type(config["classes"]), config["classes"]) == (int, 6)
    assert (type(config["centers_per_class"]), config["centers_per_class"]) == (int, 2)


def test_layers_and_losses_of_one_name_are_told_apart_in_files():
    assert isinstance(keras.layers.deserialize(keras.layers.serialize(ArcFace(3))), ArcFace)
    copy = keras.losses.deserialize(keras.losses.serialize(losses.ArcFace()))
    assert isinstance(copy, losses.ArcFace)


def test_norms_are_recorded_only_on_request():
    layer = CosineClassifier(5)
    assert recorded_embedding_norms() is None
    layer(EMBEDDING)
    with record_embedding_norms() as norms:
        layer(EMBEDDING)
        with record_embedding_norms() as inner:
            layer(EMBEDDING[:1])
        assert recorded_embedding_norms() is norms
    assert recorded_embedding_norms() is None
    assert (len(norms), len(inner)) == (1, 1)
    expected = np.linalg.norm(EMBEDDING, axis=-1)
    np.testing.assert_allclose(ops.convert_to_numpy(norms[0]), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CosineClassifier(0), "classes must be a positive integer"),
        (lambda: CosineClassifier(True), "classes=True"),
        (lambda: CosineClassifier(6.0), r"classes=6\.0"),
        (lambda: CosineClassifier(5, 0), "centers_per_class must be a positive integer"),
        (lambda: CosineClassifier(5)(np.zeros((2, 3, 4))), "must have shape"),
        (lambda: ArcFace(5, gradient="none"), "gradient must be one of"),
        (lambda: ArcFace(5, margin=4.0), "margin is an angle"),
        (lambda: CosFace(5, margin=-1.0), "margin must not be negative"),
        (lambda: CosFace(5, scale=-1.0), "scale must be greater"),
        (lambda: CosFace(5)(EMBEDDING, np.zeros((4, 3))), "Labels must be class ids"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()
