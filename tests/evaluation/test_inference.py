import gc
import tracemalloc
import weakref
from dataclasses import dataclass

import keras
import numpy as np
import pytest

from keras_hybrid import evaluation
from keras_hybrid.data.files import resize_image


def small_classifier():
    """Build image → raw 'embedding' → 'predictions', not symmetric under mirroring."""
    keras.utils.set_random_seed(7)
    inputs = keras.Input((8, 6, 3))
    features = keras.layers.Rescaling(1 / 255)(inputs)
    features = keras.layers.Conv2D(4, 3, strides=2)(features)
    embedding = keras.layers.Dense(5, name="embedding")(keras.layers.Flatten()(features))
    outputs = keras.layers.Dense(3, activation="softmax", name="predictions")(embedding)
    return keras.Model(inputs, outputs, name="small")


def images(count=5, shape=(8, 6, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype("uint8")


def raw_embeddings(model, x):
    part = keras.Model(model.input, model.get_layer("embedding").output)
    return keras.ops.convert_to_numpy(part(x.astype("float32")))


def test_embed_gives_unit_float32_rows_and_the_raw_lengths():
    model, x = small_classifier(), images()
    raw = raw_embeddings(model, x)
    for batch_size in (2, 64):
        embeddings, norms = evaluation.embed(model, x, batch_size=batch_size)
        assert embeddings.dtype == norms.dtype == np.float32
        lengths = np.linalg.norm(raw, axis=1)
        np.testing.assert_allclose(norms, lengths, rtol=1e-5)
        np.testing.assert_allclose(embeddings, raw / lengths[:, None], atol=1e-6)
    np.testing.assert_allclose(evaluation.embedding_norms(model, x), lengths, rtol=1e-5)


def test_flip_sums_or_concatenates_the_raw_embeddings():
    model, x = small_classifier(), images()
    views = raw_embeddings(model, x), raw_embeddings(model, x[:, :, ::-1])
    lengths = np.mean([np.linalg.norm(view, axis=1) for view in views], axis=0)
    for mode, expected in (("sum", views[0] + views[1]), ("concatenate", np.hstack(views))):
        embeddings, norms = evaluation.embed(model, x, flip=True, flip_mode=mode)
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(embeddings, expected, atol=1e-6)
        np.testing.assert_allclose(norms, lengths, rtol=1e-5)


def test_flipped_embedding_is_the_same_for_an_image_and_its_mirror():
    model, x = small_classifier(), images()
    embeddings, _ = evaluation.embed(model, x, flip=True)
    mirrored, _ = evaluation.embed(model, x[:, :, ::-1], flip=True)
    np.testing.assert_allclose(embeddings, mirrored, atol=1e-6)


def test_a_plain_callable_may_embed():
    x = images(3)
    embeddings, norms = evaluation.embed(lambda batch: batch.mean(axis=(1, 2)), x, batch_size=2)
    means = x.mean(axis=(1, 2))
    np.testing.assert_allclose(norms, np.linalg.norm(means, axis=1), rtol=1e-5)
    np.testing.assert_allclose(embeddings * norms[:, None], means, rtol=1e-4)


def test_embed_equals_the_embedding_model():
    applications = pytest.importorskip("keras_hybrid.applications")
    if not hasattr(applications, "embedding_model"):
        pytest.skip("keras_hybrid.applications.embedding_model is not there")
    model, x = small_classifier(), images()
    embedder = applications.embedding_model(model)
    embeddings, _ = evaluation.embed(model, x)
    again, _ = evaluation.embed(embedder, x)
    np.testing.assert_allclose(embeddings, embedder.predict(x, verbose=0), atol=1e-5)
    np.testing.assert_allclose(embeddings, again, atol=1e-5)


class Counted(keras.layers.Layer):
    """Counts how often Python runs it: once a trace, and once a call where nothing is traced."""

    runs = 0

    def call(self, inputs):
        self.runs += 1
        return inputs


def test_a_second_call_compiles_nothing_and_sees_new_weights():
    inputs = keras.Input((8, 6, 3))
    counted = Counted()
    features = keras.layers.Flatten()(counted(inputs))
    embedding = keras.layers.Dense(5, name="embedding")(features)
    model = keras.Model(inputs, keras.layers.Dense(3)(embedding))
    x = images()
    evaluation.embed(model, x)
    runs = counted.runs
    model.set_weights([1 - w for w in model.get_weights()])
    for quantized in (False, True):
        if quantized:
            model.quantize("int8")
        embeddings, norms = evaluation.embed(model, x)
        raw = raw_embeddings(model, x)
        np.testing.assert_allclose(embeddings * norms[:, None], raw, rtol=1e-4)
        if not quantized:
            # raw_embeddings runs it once more.
            assert counted.runs == runs + 1 + (keras.backend.backend() == "torch")


def test_embedding_a_model_does_not_keep_it():
    model = small_classifier()
    evaluation.embed(model, images())
    known = weakref.ref(model)
    del model
    gc.collect()
    assert known() is None


def test_bad_arguments_to_embed_are_named():
    model, x = small_classifier(), images()
    with pytest.raises(ValueError, match="shape"):
        evaluation.embed(model, x[0])
    with pytest.raises(ValueError, match="at least 1"):
        evaluation.embed(model, x[:0])
    with pytest.raises(ValueError, match="batch_size"):
        evaluation.embed(model, x, batch_size=0)
    with pytest.raises(ValueError, match="flip_mode must be one of sum, concatenate"):
        evaluation.embed(model, x, flip_mode="mean")
    with pytest.raises(ValueError, match="callable"):
        evaluation.embed("model.keras", x)
    with pytest.raises(ValueError, match="pooling"):
        evaluation.embed(lambda batch: batch, x)
    headless = keras.Sequential([keras.Input((8, 6, 3)), keras.layers.GlobalMaxPooling2D()])
    with pytest.raises(ValueError, match="no layer named 'embedding'"):
        evaluation.embedding_norms(headless, x)
    twins = [keras.Input((8, 6, 3)), keras.Input((5, 2))]
    flat = keras.layers.Concatenate()([keras.layers.Flatten()(twin) for twin in twins])
    with pytest.raises(ValueError, match="2 inputs"):
        evaluation.embed(keras.Model(twins, flat), x)


def test_predict_averages_over_the_mirror():
    model, x = small_classifier(), images()
    plain = evaluation.predict(model, x, batch_size=2)
    np.testing.assert_allclose(plain, model.predict(x, verbose=0), atol=1e-6)
    mirrored = evaluation.predict(model, x[:, :, ::-1])
    flipped = evaluation.predict(model, x, flip=True)
    np.testing.assert_allclose(flipped, (plain + mirrored) / 2, atol=1e-6)


def test_a_classifier_of_very_many_classes_is_judged_in_little_memory():
    """The scores of all images at once would be 160 MB."""
    count, classes = 2000, 20_000
    labels = np.arange(count) % classes

    def model(images):
        scores = np.zeros((len(images), classes), "float32")
        scores[np.arange(len(images)), images[:, 0, 0, 0].astype(int)] = 1
        return scores

    images = np.zeros((count, 1, 1, 3), "float32")
    images[:, 0, 0, 0] = np.where(np.arange(count) % 4, labels, labels + 1)
    tracemalloc.start()
    result = evaluation.evaluate_classifier(model, images, labels, flip=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.top1 == 0.75 and result.top_k[5] == pytest.approx(0.75, abs=0.01)
    assert peak < 60e6


def test_evaluate_classifier_counts_the_models_own_predictions():
    model, x = small_classifier(), images(9)
    labels = model.predict(x, verbose=0).argmax(axis=1)
    assert evaluation.evaluate_classifier(model, x, labels, batch_size=4).top1 == 1
    wrong = (labels + 1) % 3
    result = evaluation.evaluate_classifier(model, x, wrong, class_names=["a", "b", "c"])
    assert result.top1 == 0
    assert result.top5 == 1
    assert sum(mistake.count for mistake in result.most_confused()) == 9


@dataclass
class FakePairs:
    """The part of keras_hybrid.data.PairList that evaluate_pairs uses."""

    photographs: dict
    left: list
    right: list
    same: np.ndarray
    fold: np.ndarray
    reads: list

    def read(self, name):
        self.reads.append(name)
        return self.photographs[name]


def fake_pairs(shape=(8, 6, 3)):
    photographs = dict(zip("abcdef", images(6, shape), strict=True))
    return FakePairs(
        photographs,
        left=list("aabbccdd"),
        right=list("abbccdef"),
        same=np.array([1, 0, 1, 0, 1, 0, 1, 0], bool),
        fold=np.array([0, 0, 1, 1, 2, 2, 3, 3]),
        reads=[],
    )


def test_evaluate_pairs_reads_each_image_once_and_equals_verify():
    model, pairs = small_classifier(), fake_pairs()
    result = evaluation.evaluate_pairs(model, pairs, batch_size=4, flip=True)
    assert sorted(pairs.reads) == list("abcdef")
    x = np.stack(list(pairs.photographs.values()))
    embeddings, norms = evaluation.embed(model, x, flip=True)
    rows = {name: row for row, name in enumerate(pairs.photographs)}
    expected = evaluation.verify(
        embeddings[[rows[name] for name in pairs.left]],
        embeddings[[rows[name] for name in pairs.right]],
        pairs.same,
        pairs.fold,
    )
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-6)
    assert len(result.fold_accuracies) == 4
    assert result.xnorm == pytest.approx(norms.mean(), rel=1e-5)


def test_evaluate_pairs_resizes_to_the_models_input_or_the_size_given():
    pytest.importorskip("PIL")
    pairs = fake_pairs((20, 12, 3))
    evaluation.evaluate_pairs(small_classifier(), pairs)
    seen = []

    def embedder(batch):
        seen.append(batch.shape)
        return batch.mean(axis=(1, 2)) - 100

    evaluation.evaluate_pairs(embedder, pairs)
    evaluation.evaluate_pairs(embedder, pairs, image_size=10)
    evaluation.evaluate_pairs(embedder, pairs, image_size=(4, 5), folds=2)
    assert seen == [(6, 20, 12, 3), (6, 10, 10, 3), (6, 4, 5, 3)]


def test_evaluate_pairs_refuses_images_of_several_sizes_without_a_size():
    pairs = fake_pairs()
    pairs.photographs["b"] = images(1, (9, 9, 3))[0]
    with pytest.raises(ValueError, match="image_size"):
        evaluation.evaluate_pairs(lambda batch: batch.mean(axis=(1, 2)), pairs)


def test_evaluate_pairs_refuses_an_empty_list():
    pairs = FakePairs({}, [], [], np.array([], bool), np.array([], int), [])
    with pytest.raises(ValueError, match="empty"):
        evaluation.evaluate_pairs(small_classifier(), pairs)


# Landmarks


def reader_of_landmarks():
    """Build a model whose 'embedding' is its second input and the image's upper left pixel."""
    image, points = keras.Input((8, 6, 3), name="image"), keras.Input((5, 2), name="landmarks")
    corner = keras.layers.Flatten()(image[:, :1, :1])
    x = keras.layers.Concatenate()([keras.layers.Flatten()(points), corner])
    return keras.Model([image, points], keras.layers.Identity(name="embedding")(x), name="reader")


def landmarks_of(count, height=8, width=6, seed=1):
    """Random points of an image: (count, 5, 2) in pixels."""
    places = np.random.default_rng(seed).uniform(size=(count, 5, 2))
    return (places * (width - 1, height - 1)).astype("float32")


def seen_by(x, points, height=8, width=6):
    """What the reader should see: the definition of its input, point by point."""
    fractions = [
        [((px + 0.5) / width, (py + 0.5) / height) for px, py in of_image] for of_image in points
    ]
    return np.hstack([np.reshape(fractions, (len(x), 10)), x[:, 0, 0]])


def test_landmarks_go_with_their_image_and_are_mirrored_with_it():
    model, x, points = reader_of_landmarks(), images(), landmarks_of(5)
    plain = seen_by(x, points)
    np.testing.assert_allclose(
        evaluation.predict(model, x, batch_size=2, landmarks=points), plain, rtol=1e-5
    )
    # Turned round by hand: eyes and mouth corners change sides, pixel 0 becomes pixel 5.
    turned = [
        [(5 - px, py) for px, py in (right_eye, left_eye, nose, right_mouth, left_mouth)]
        for left_eye, right_eye, nose, left_mouth, right_mouth in points
    ]
    mirrored = seen_by(x[:, :, ::-1], turned)
    flipped = evaluation.predict(model, x, batch_size=2, flip=True, landmarks=points)
    np.testing.assert_allclose(flipped, (plain + mirrored) / 2, rtol=1e-5)
    embeddings, norms = evaluation.embed(model, x, flip=True, landmarks=points)
    both = plain + mirrored
    np.testing.assert_allclose(
        embeddings, both / np.linalg.norm(both, axis=1, keepdims=True), atol=1e-6
    )
    expected = (np.linalg.norm(plain, axis=1) + np.linalg.norm(mirrored, axis=1)) / 2
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    labels = plain.argmax(axis=1)
    assert evaluation.evaluate_classifier(model, x, labels, landmarks=points).top1 == 1


def test_pairs_give_their_landmarks_and_resize_them_with_the_images():
    pytest.importorskip("PIL")
    model, pairs = reader_of_landmarks(), fake_pairs((16, 18, 3))
    points = landmarks_of(6, 16, 18)
    pairs.landmarks = dict(zip(pairs.photographs, points, strict=True))
    result = evaluation.evaluate_pairs(model, pairs)
    small = np.stack([resize_image(image, (8, 6)) for image in pairs.photographs.values()])
    rows = dict(zip(pairs.photographs, seen_by(small, (points + 0.5) / (3, 2) - 0.5), strict=True))
    left, right = (np.array([rows[name] for name in side]) for side in (pairs.left, pairs.right))
    expected = evaluation.verify(left, right, pairs.same, pairs.fold)
    np.testing.assert_allclose(result.scores, expected.scores, atol=1e-6)
    # A model without the input gets none of them.
    evaluation.evaluate_pairs(small_classifier(), pairs)
    pairs.landmarks["a"] = pairs.landmarks["a"] + 100
    with pytest.raises(ValueError, match=r"a: its landmarks.*far outside its 18×16 pixels"):
        evaluation.evaluate_pairs(model, pairs)
    with pytest.raises(ValueError, match="'reader' takes landmarks, and these pairs have none"):
        evaluation.evaluate_pairs(model, fake_pairs())


def test_landmarks_that_are_missing_or_not_wanted_are_named():
    model, x, points = reader_of_landmarks(), images(), landmarks_of(5)
    with pytest.raises(ValueError, match="'reader' takes landmarks, too, but none are given"):
        evaluation.predict(model, x)
    with pytest.raises(ValueError, match="'small' takes no landmarks"):
        evaluation.predict(small_classifier(), x, landmarks=points)
    with pytest.raises(ValueError, match=r"shape \(5, 5, 2\)"):
        evaluation.embed(model, x, landmarks=points[:4])
    with pytest.raises(ValueError, match=r"image 0: .*far outside"):
        evaluation.embed(model, x, landmarks=points + 10)
