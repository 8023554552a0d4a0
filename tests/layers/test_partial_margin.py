"""Sampled classes: who is drawn, where the labels stand, and what fit makes of it."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_hybrid as kh
from keras_hybrid.layers import CosineClassifier, PartialCosineClassifier
from keras_hybrid.layers.partial_margin import supply_labels

CLASSES, DIM = 40, 8
RANDOM = np.random.default_rng(0)
PROTOTYPES = RANDOM.normal(size=(CLASSES, 12))
LABELS = np.arange(120) % CLASSES
VECTORS = (PROTOTYPES[LABELS] + 0.2 * RANDOM.normal(size=(120, 12))).astype("float32")


def numpy(x):
    return ops.convert_to_numpy(x)


def head(**arguments):
    layer = PartialCosineClassifier(CLASSES, **{"sampling_rate": 0.3, "seed": 1, **arguments})
    layer.build((None, DIM))
    return layer


def build(classifier, seed=1):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((12,))
    embedding = keras.layers.Dense(DIM, name="embedding")(inputs)
    return kh.applications.MarginModel(inputs, classifier(embedding))


def partial(rate, **arguments):
    return PartialCosineClassifier(CLASSES, rate, name="predictions", seed=3, **arguments)


@pytest.mark.parametrize(
    "labels", [[5, 0, 39, 7], [5, 5, 0, 5, 39, 0, 5, 5], list(range(12)), [3] * 12]
)
def test_a_sample_has_the_batchs_classes_where_columns_says_and_others_once_each(labels):
    layer = head()
    assert layer.sampled == 12
    seen = set()
    for _ in range(60):
        sample = numpy(layer.sample(ops.convert_to_tensor(labels, "int32")))
        assert sample.shape == (12,) and len(set(sample)) == 12
        assert sample.min() >= 0 and sample.max() < CLASSES
        columns = numpy(layer.columns(ops.convert_to_tensor(labels)))
        np.testing.assert_array_equal(sample[columns], labels)
        seen |= set(sample)
    assert len(seen) == (12 if len(set(labels)) == 12 else CLASSES)


@pytest.mark.parametrize(
    "labels", [[5, 0, 39, 7], [5, 5, 0, 30, 39, 0], [0, 1, 2, 3, 4, 5], [20] * 6, [19, 20, 19, 20]]
)
def test_every_shard_has_an_equal_part_of_the_sample(labels):
    layer = head(shards=2)
    assert layer.sampled == 12
    seen = set()
    for _ in range(60):
        sample = numpy(layer.sample(ops.convert_to_tensor(labels, "int32")))
        assert len(set(sample)) == 12
        assert (sample[:6] < 20).all() and (sample[6:] >= 20).all()
        columns = numpy(layer.columns(ops.convert_to_tensor(labels)))
        np.testing.assert_array_equal(sample[columns], labels)
        seen |= set(sample)
    # All others are drawn, if a shard has any column left for them.
    full = {shard for shard in (0, 1) if sum(label // 20 == shard for label in set(labels)) == 6}
    assert len(seen) == CLASSES - 14 * len(full)


def test_a_sample_is_of_equal_parts_rounded_up():
    assert head(shards=8, sampling_rate=0.3).sampled == 16  # 1.5 of 5, eight times
    assert head(shards=8, sampling_rate=1.0).sampled == CLASSES
    layer = PartialCosineClassifier.from_config(head(shards=4).get_config())
    assert (layer.shards, layer.sampled) == (4, 12)
    assert head().get_config()["shards"] is None and head().shards == 1


@pytest.mark.parametrize("shards", [0, 3, 2.0, "2"])
def test_shards_that_do_not_divide_the_classes_are_refused(shards):
    with pytest.raises(ValueError, match="shards must be a positive integer that divides the 40"):
        head(shards=shards)


def test_the_others_are_drawn_alike():
    layer, labels = head(), ops.convert_to_tensor([[2], [2], [9], [4]], "int32")
    counts = np.zeros(CLASSES)
    for _ in range(600):
        np.add.at(counts, numpy(layer.sample(labels)), 1)
    assert (counts[[2, 9, 4]] == 600).all()
    others = np.delete(counts, [2, 9, 4])
    expected = 600 * 9 / 37
    # Binomial: five standard deviations at most.
    assert np.abs(others - expected).max() < 5 * np.sqrt(expected * (1 - 9 / 37))


@pytest.mark.parametrize(("centers", "shards"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_training_sees_the_cosines_of_the_sample(centers, shards):
    layer = head(centers_per_class=centers, shards=shards)
    embedding = RANDOM.normal(size=(6, DIM)).astype("float32")
    labels = ops.convert_to_tensor([1, 8, 1, 30, 2, 8], "int32")
    full = numpy(layer(embedding))
    assert full.shape == (6, CLASSES)
    np.testing.assert_array_equal(numpy(layer(embedding, training=True)), full)  # no labels
    state = numpy(layer.seed_generator.state.value)
    sample = numpy(layer.sample(labels))
    layer.seed_generator.state.assign(state)
    with supply_labels(labels):
        np.testing.assert_array_equal(numpy(layer(embedding)), full)
        seen = numpy(layer(embedding, training=True))
    np.testing.assert_allclose(seen, full[:, sample], atol=1e-6)


def test_a_rate_of_one_is_the_full_head():
    histories, weights = [], []
    for classifier in (CosineClassifier(CLASSES, name="predictions"), partial(1.0)):
        model = build(classifier)
        # Both heads begin with the same centres; their initialisers were made with other seeds.
        centers = np.random.default_rng(5).normal(size=(CLASSES, DIM))
        model.get_layer("predictions").centers.assign(centers)
        model.compile("adam", loss=kh.losses.CosFace(scale=16.0), metrics=["accuracy"])
        histories.append(model.fit(VECTORS, LABELS, batch_size=32, epochs=3, verbose=0).history)
        weights.append([numpy(w) for w in model.trainable_variables])
    assert histories[0] == histories[1]
    for full, sampled in zip(*weights, strict=True):
        np.testing.assert_array_equal(full, sampled)


@pytest.mark.parametrize(("rate", "shards"), [(0.3, 1), (0.5, 2)])
def test_a_step_is_that_of_a_softmax_over_the_sample(rate, shards):
    """The gradient of the sampled loss once more, by differences of a loss in float64."""
    layer = partial(rate, shards=shards)
    model = build(layer)
    learning_rate = 1e-3
    model.compile(
        keras.optimizers.SGD(learning_rate), loss=kh.losses.CosFace(margin=0.2, scale=8.0)
    )
    x, y = VECTORS[:10], 7 * (LABELS[:10] // 2)  # classes that occur twice
    before = numpy(layer.centers).astype("float64")
    kernel, bias = (numpy(w).astype("float64") for w in model.get_layer("embedding").weights)
    state = numpy(layer.seed_generator.state.value)
    sample = numpy(layer.sample(ops.convert_to_tensor(y, "int32")))
    layer.seed_generator.state.assign(state)
    loss = model.train_on_batch(x, y)

    def expected_loss(centers):
        embedding = x @ kernel + bias
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
        chosen = centers[sample] / np.linalg.norm(centers[sample], axis=1, keepdims=True)
        logits = 8.0 * (embedding @ chosen.T - 0.2 * (y[:, None] == sample))
        target = (logits * (y[:, None] == sample)).sum(1)
        return np.mean(np.log(np.exp(logits).sum(1)) - target)

    assert abs(float(loss) - expected_loss(before)) < 1e-5
    moved = numpy(layer.centers) - before
    others = np.setdiff1d(np.arange(CLASSES), sample)
    assert not moved[others].any()  # SGD without momentum
    for row in sample:
        step = np.zeros_like(before)
        step[row, 2] = 1e-5
        slope = (expected_loss(before + step) - expected_loss(before - step)) / 2e-5
        np.testing.assert_allclose(moved[row, 2], -learning_rate * slope, atol=2e-7)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: kh.losses.ArcFace(margin=0.2, scale=16.0),
        lambda: kh.losses.CurricularFace(margin=0.2, scale=16.0),
        lambda: kh.losses.AdaFace(scale=16.0),
    ],
    ids=["arcface", "curricularface", "adaface"],
)
def test_fit_learns_all_classes_from_samples_and_evaluates_on_all(loss):
    model = build(partial(0.4, centers_per_class=2))
    optimizer = keras.optimizers.AdamW(0.02, global_clipnorm=5.0)
    metrics = ["accuracy", kh.metrics.MeanTargetCosine(name="target_cosine")]
    model.compile(optimizer, loss=loss(), metrics=metrics)
    # 120 = 7 · 16 + 8: the last batch is smaller.
    history = model.fit(
        VECTORS, LABELS, batch_size=16, epochs=12, verbose=0, validation_data=(VECTORS, LABELS)
    ).history
    assert history["val_accuracy"][0] < 0.6 < 0.95 < history["val_accuracy"][-1]
    assert history["accuracy"][-1] > 0.95
    assert history["target_cosine"][-1] > history["target_cosine"][0] + 0.2
    output = model.predict(VECTORS[:5], verbose=0)
    assert output.shape == (5, CLASSES)
    np.testing.assert_array_equal(output.argmax(1), LABELS[:5])


def test_draws_follow_the_seed():
    runs = []
    for _ in range(2):
        model = build(partial(0.3, kernel_initializer=keras.initializers.GlorotUniform(seed=2)))
        model.compile("sgd", loss=kh.losses.CosFace(scale=16.0))
        model.fit(VECTORS, LABELS, batch_size=12, epochs=2, shuffle=False, verbose=0)
        runs.append([numpy(w) for w in model.weights])
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)
    labels = ops.convert_to_tensor(LABELS[:6])
    layer = head()
    assert (numpy(layer.sample(labels)) != numpy(layer.sample(labels))).any()


def test_a_saved_model_is_the_same_and_gives_its_centres_to_a_full_head(tmp_path):
    model = build(partial(0.3))
    model.compile("adam", loss=kh.losses.CosFace(scale=16.0))
    model.fit(VECTORS, LABELS, batch_size=12, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    layer = loaded.get_layer("predictions")
    assert isinstance(layer, PartialCosineClassifier)
    assert (layer.sampling_rate, layer.sampled, layer.seed) == (0.3, 12, 3)
    expected = model.predict(VECTORS, verbose=0)
    np.testing.assert_allclose(loaded.predict(VECTORS, verbose=0), expected, atol=1e-6)
    loaded.fit(VECTORS, LABELS, batch_size=12, verbose=0)
    full = build(CosineClassifier(CLASSES, name="predictions"))
    for name in ("embedding", "predictions"):
        full.get_layer(name).set_weights(
            [numpy(w) for w in model.get_layer(name).trainable_variables]
        )
    np.testing.assert_allclose(full.predict(VECTORS, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "classes", "sampled"), [(0.07, 100, 7), (0.3, 10, 3), (0.25, 10, 3), (1, 7, 7)]
)
def test_the_sample_is_rounded_up(rate, classes, sampled):
    assert PartialCosineClassifier(classes, rate).sampled == sampled


@pytest.mark.parametrize("rate", [0, -0.1, 1.5])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=r"sampling_rate must lie in \(0, 1\].*="):
        PartialCosineClassifier(10, rate)


def test_a_batch_larger_than_the_sample_is_refused():
    with pytest.raises(ValueError, match="A batch of 13 may have more classes than the 12"):
        head().sample(ops.convert_to_tensor(LABELS[:13]))
    with pytest.raises(ValueError, match="more classes than the 6 that are sampled of 20, of each"):
        head(shards=2).sample(ops.convert_to_tensor(LABELS[:7]))
    model = build(partial(0.3))
    model.compile("sgd", loss=kh.losses.CosFace())
    with pytest.raises(ValueError, match="A batch of 24 may have more classes than the 12"):
        model.fit(VECTORS, LABELS, batch_size=24, verbose=0)


@pytest.mark.parametrize("floatx", ["float64", "float16", "bfloat16"])
def test_sampling_and_losses_do_not_depend_on_floatx(floatx):
    labels = ops.convert_to_tensor(LABELS[:12])
    cosines = np.random.default_rng(0).uniform(-1, 1, (12, CLASSES)).astype("float32")
    sampled = ops.convert_to_numpy(head().sample(labels))
    losses = [kh.losses.CosFace(), kh.losses.ArcFace(), kh.losses.SphereFace()]
    expected = [float(loss(labels, cosines)) for loss in losses]
    adaptive, norms = kh.losses.AdaFace(), np.linspace(5, 40, 12, dtype="float32")
    state = adaptive.next_state(adaptive.initial_state(), cosines, labels, norms)
    former = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        np.testing.assert_array_equal(ops.convert_to_numpy(head().sample(labels)), sampled)
        found = [float(loss(labels, ops.convert_to_tensor(cosines))) for loss in losses]
        changed = adaptive.next_state(adaptive.initial_state(), cosines, labels, norms)
    finally:
        keras.config.set_floatx(former)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert {k: float(v) for k, v in changed.items()} == pytest.approx(
        {k: float(v) for k, v in state.items()}
    )


@pytest.mark.parametrize("kind", [list, dict])
def test_a_sampling_head_beside_other_outputs_is_refused(kind):
    image = keras.Input((16,))
    outputs = {"predictions": partial(0.3)(image), "age": keras.layers.Dense(1, name="age")(image)}
    outputs = outputs if kind is dict else list(outputs.values())
    model = kh.applications.MarginModel(image, outputs)
    with pytest.raises(ValueError, match="has several outputs, or names for them"):
        model.compile("sgd", loss="mse")


def test_labels_that_are_no_ids_are_refused():
    one_hot = np.eye(CLASSES, dtype="float32")[LABELS]
    model = build(partial(0.3))
    model.compile("sgd", loss=kh.losses.CosFace())
    with pytest.raises(ValueError, match=r"needs labels as ids.*\((12|None), 40\)"):
        model.fit(VECTORS, one_hot, batch_size=12, verbose=0)


@pytest.mark.parametrize("wrong", [-1, CLASSES])
def test_an_id_that_is_no_class_makes_the_loss_not_a_number_as_with_the_full_head(wrong):
    labels = np.where(np.arange(len(LABELS)) == 3, wrong, LABELS)
    for layer in (partial(0.5), kh.layers.CosineClassifier(CLASSES, name="predictions")):
        model = build(layer)
        model.compile("sgd", loss=kh.losses.CosFace())
        assert np.isnan(model.train_on_batch(VECTORS[:12], labels[:12]))
    columns = ops.convert_to_numpy(partial(0.5).columns(ops.convert_to_tensor(labels[:12])))
    assert columns[3] == -1 and (np.delete(columns, 3) >= 0).all()
    sampled = ops.convert_to_numpy(head().sample(ops.convert_to_tensor(labels[:12])))
    assert len(set(sampled.tolist())) == len(sampled) and set(sampled) <= set(range(CLASSES))
