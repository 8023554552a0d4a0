"""Every margin loss through compile and fit, with its state."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_hybrid import losses
from keras_hybrid.applications import margin_model
from keras_hybrid.applications.conformer import TwoHeads
from keras_hybrid.applications.margin_model import MarginModel
from keras_hybrid.layers.margin import ArcFace, CosFace, CosineClassifier
from keras_hybrid.layers.partial_margin import PartialCosineClassifier
from keras_hybrid.metrics import MeanTargetCosine

CLASSES = 4
RANDOM = np.random.default_rng(0)
LABELS = np.arange(32) % CLASSES
PROTOTYPES = RANDOM.normal(size=(CLASSES, 6, 6, 1))
IMAGES = (PROTOTYPES[LABELS] + 0.3 * RANDOM.normal(size=(32, 6, 6, 1))).astype("float32")

EVERY_LOSS = {
    "arcface": lambda: losses.ArcFace(scale=16.0),
    "straight_through": lambda: losses.ArcFace(scale=16.0, gradient="straight_through"),
    "cosface": lambda: losses.CosFace(scale=16.0),
    "sphereface": lambda: losses.SphereFace(scale=16.0),
    "combined": lambda: losses.CombinedMargin(1.0, 0.3, 0.1, scale=16.0),
    "curricularface": lambda: losses.CurricularFace(scale=16.0),
    "adaface": lambda: losses.AdaFace(scale=16.0),
}


def build(model_class=MarginModel, head=None, dropout=0.0):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(dropout)(layers.Flatten()(x))
    embedding = layers.Dense(8, name="embedding")(x)
    head = head or CosineClassifier(CLASSES, name="predictions")
    return model_class(inputs, head(embedding), name="tiny")


def compiled(loss, optimizer=None, **options):
    model = build()
    options.setdefault("metrics", ["accuracy"])
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss=loss, **options)
    return model


def state_of(model):
    return {
        key: float(ops.convert_to_numpy(value))
        for key, value in model.margin_state.result().items()
    }


def fit(model, epochs=1, **options):
    options.setdefault("batch_size", 16)
    return model.fit(IMAGES, LABELS, epochs=epochs, verbose=0, **options).history


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        *(("float32", name) for name in EVERY_LOSS),
        *(("mixed_bfloat16", name) for name in ("arcface", "curricularface", "adaface")),
        *(("mixed_float16", name) for name in ("arcface", "adaface")),
    ],
)
def test_images_and_labels_are_all_it_takes(policy, name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(EVERY_LOSS[name]())
    finally:
        keras.config.set_dtype_policy(before)
    parameters = model.count_params()
    history = fit(model, epochs=8)
    assert history["loss"][-1] < history["loss"][0]
    assert history["accuracy"][-1] > history["accuracy"][0]
    assert model.count_params() == parameters == build(keras.Model).count_params()
    cosine = ops.convert_to_numpy(model(IMAGES))
    assert cosine.shape == (32, CLASSES) and cosine.dtype == np.float32
    assert np.abs(cosine).max() <= 1


def test_accuracy_is_that_of_the_largest_cosine():
    model = compiled(losses.CosFace())
    expected = np.mean(model.predict(IMAGES, verbose=0).argmax(-1) == LABELS)
    logs = model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
    assert logs["accuracy"] == pytest.approx(expected)


def test_one_hot_labels_and_sample_weights_train_too():
    model = compiled(losses.AdaFace(scale=16.0))
    one_hot = np.eye(CLASSES, dtype="float32")[LABELS]
    history = model.fit(
        IMAGES, one_hot, sample_weight=np.ones(32), epochs=6, batch_size=16, verbose=0
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["accuracy"][-1] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"run_eagerly": True}, {"jit_compile": True}], ids=["eager", "jit"]
)
def test_compiled_and_eager_training_agree(options):
    backend, compiles = keras.backend.backend(), "jit_compile" in options
    if (backend, compiles) in {("torch", True), ("torch", False), ("jax", True)}:
        pytest.skip("is the default on JAX; PyTorch is eager, and torch.compile takes a minute")
    histories = []
    for chosen in ({}, options):
        model = compiled(EVERY_LOSS["adaface"](), **chosen)
        histories.append(fit(model, epochs=2, shuffle=False))
    for key in histories[0]:
        np.testing.assert_allclose(histories[1][key], histories[0][key], rtol=1e-3, atol=1e-4)


def test_the_optimizers_variables_are_there_before_a_step_is_traced():
    model = compiled(losses.ArcFace(), keras.optimizers.AdamW())
    assert not model.optimizer.built
    model.make_train_function()
    moments = [v for v in model.optimizer.variables if "momentum" in v.path]
    assert len(moments) == len(model.trainable_variables)


def test_curricular_state_is_the_running_mean_of_the_targets_cosine():
    model = compiled(losses.CurricularFace(), keras.optimizers.SGD(0.0))
    cosine = ops.convert_to_numpy(model(IMAGES[:16], training=True))
    mean = cosine[np.arange(16), LABELS[:16]].mean()
    model.fit(IMAGES[:16], LABELS[:16], epochs=3, batch_size=16, shuffle=False, verbose=0)
    assert state_of(model)["curriculum_t"] == pytest.approx((1 - 0.99**3) * mean, rel=1e-3)


def test_adaface_state_is_the_running_statistics_of_the_norms():
    model = compiled(losses.AdaFace(t_alpha=1.0), keras.optimizers.SGD(0.0))
    embedder = keras.Model(model.input, model.get_layer("embedding").output)
    norms = np.linalg.norm(ops.convert_to_numpy(embedder(IMAGES, training=True)), axis=-1)
    history = fit(model, batch_size=32, shuffle=False)
    assert state_of(model)["norm_mean"] == pytest.approx(norms.mean(), rel=1e-4)
    assert state_of(model)["norm_std"] == pytest.approx(norms.std(ddof=1), rel=1e-4)
    assert history["norm_mean"][-1] == pytest.approx(norms.mean(), rel=1e-4)


@pytest.mark.parametrize("name", ["adaface", "curricularface"])
def test_state_outlives_epochs_and_evaluation_leaves_it_alone(name):
    model = compiled(EVERY_LOSS[name]())
    start = state_of(model)
    history = fit(model, epochs=3, validation_data=(IMAGES, LABELS))
    state = state_of(model)
    for key, value in state.items():
        assert len({start[key], *map(float, history[key])}) == 4, "the state moves in every epoch"
        assert history[key][-1] == pytest.approx(value, rel=1e-6)
        assert history[f"val_{key}"] == pytest.approx(history[key], rel=1e-6)
    model.evaluate(IMAGES, LABELS, verbose=0)
    model.predict(IMAGES, verbose=0)
    assert state_of(model) == state
    fit(model)
    assert state_of(model) != state


@pytest.mark.parametrize("name", ["adaface", "curricularface"])
def test_training_resumes_from_a_keras_file(name, tmp_path):
    model = compiled(EVERY_LOSS[name]())
    fit(model, epochs=2, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model) and isinstance(loaded, MarginModel)
    assert state_of(loaded) == state_of(model)
    expected, resumed = fit(model, shuffle=False), fit(loaded, shuffle=False)
    for key in expected:
        np.testing.assert_allclose(resumed[key], expected[key], rtol=1e-4, err_msg=key)
    assert loaded.optimizer.iterations == 6


def test_weights_files_carry_the_state_and_fit_models_without(tmp_path):
    model = compiled(losses.AdaFace())
    fit(model)
    path = tmp_path / "tiny.weights.h5"
    model.save_weights(path)
    plain, again = build(), compiled(losses.AdaFace())
    plain.load_weights(path)
    again.load_weights(path)
    expected = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(plain.predict(IMAGES, verbose=0), expected, atol=1e-6)
    assert state_of(again) == state_of(model)
    plain.save_weights(path)
    untouched = state_of(again)
    again.load_weights(path)
    assert state_of(again) == untouched


def test_gradient_accumulation_trains():
    optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    model = compiled(losses.AdaFace(scale=16.0), optimizer)
    history = fit(model, epochs=6, batch_size=8)
    assert history["loss"][-1] < history["loss"][0]
    assert state_of(model)["norm_std"] == pytest.approx(100 * 0.99**24, rel=0.05)


def test_the_state_belongs_to_the_loss_object():
    loss = losses.CurricularFace()
    model = compiled(loss)
    fit(model)
    state = state_of(model)
    model.compile("sgd", loss)
    assert state_of(model) == state
    model.compile("sgd", losses.CurricularFace())
    assert state_of(model) == {"curriculum_t": 0.0}
    model.compile("sgd", losses.CosFace())
    assert model.margin_state is None
    assert "curriculum_t" not in fit(model)


def test_a_custom_call_of_compute_loss_agrees_with_evaluate():
    model = compiled(losses.AdaFace())
    fit(model)
    expected = model.evaluate(IMAGES, LABELS, batch_size=32, verbose=0, return_dict=True)["loss"]
    y, y_pred = ops.convert_to_tensor(LABELS), model(IMAGES)
    loss = model.compute_loss(ops.convert_to_tensor(IMAGES), y, y_pred, training=False)
    assert float(ops.convert_to_numpy(loss)) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="needs the norms"):
        model.compute_loss(None, y, y_pred, training=False)


def test_two_outputs_may_share_the_model():
    base = build()
    attribute = layers.Dense(2, name="attribute")(base.get_layer("embedding").output)
    model = MarginModel(base.input, [base.output, attribute])
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss=[losses.AdaFace(), crossentropy])
    model.fit(IMAGES, [LABELS, LABELS % 2], verbose=0)
    assert state_of(model)["norm_std"] != 100


def test_the_same_model_compiles_with_keras_own_losses():
    model = build()
    model.compile("sgd", "mse")
    model.fit(IMAGES, np.eye(CLASSES, dtype="float32")[LABELS], verbose=0)
    assert model.margin_state is None


def test_clone_and_config_round_trip_keep_the_class():
    model = build()
    for copy in (keras.models.clone_model(model), MarginModel.from_config(model.get_config())):
        assert isinstance(copy, MarginModel)
        assert copy.count_params() == model.count_params()


def test_adaface_needs_a_cosine_classifier():
    model = build(head=layers.Dense(CLASSES))
    with pytest.raises(ValueError, match="CosineClassifier"):
        model.compile("sgd", losses.AdaFace())


def test_adaface_of_two_classifiers_is_refused_when_compiled():
    """Not in the first step, after the data are there."""
    inputs = keras.Input(IMAGES.shape[1:])
    heads = [CosineClassifier(CLASSES)(layers.Flatten()(inputs)) for _ in range(2)]
    model = MarginModel(inputs, layers.Average()(heads))
    with pytest.raises(ValueError, match=r"AdaFace needs .* has 2\. Use .*CurricularFace"):
        model.compile("sgd", losses.AdaFace())
    model.compile("sgd", losses.CurricularFace())


@pytest.mark.parametrize("kind", ["ids", "column", "one_hot"])
@pytest.mark.parametrize("first", ["ids", "one_hot"])
def test_accuracy_is_right_whatever_form_later_labels_have(first, kind):
    """As with training images that are mixed and validation images that are not."""
    forms = {
        "ids": LABELS,
        "column": LABELS[:, None],
        "one_hot": np.eye(CLASSES, dtype="float32")[LABELS],
    }
    model = build()
    metrics = ["accuracy", MeanTargetCosine()]
    model.compile(keras.optimizers.SGD(0.05), losses.CosFace(scale=8.0), metrics=metrics)
    model.fit(IMAGES, forms[first], verbose=0)
    cosines = model.predict(IMAGES, verbose=0)
    logs = model.evaluate(IMAGES, forms[kind], verbose=0, return_dict=True)
    assert logs["accuracy"] == pytest.approx((cosines.argmax(axis=1) == LABELS).mean())
    expected = cosines[np.arange(len(LABELS)), LABELS].mean()
    assert logs["mean_target_cosine"] == pytest.approx(expected, abs=1e-5)
    # Compiled anew, the first batch decides anew.
    model.compile("sgd", losses.CosFace(scale=8.0), metrics=["accuracy"])
    logs = model.evaluate(IMAGES, forms[kind], verbose=0, return_dict=True)
    assert logs["accuracy"] == pytest.approx((cosines.argmax(axis=1) == LABELS).mean())


HEADS = {
    "dense": lambda: layers.Dense(CLASSES, name="predictions"),
    "two": lambda: TwoHeads(3, CLASSES, name="predictions"),
    "arcface": lambda: ArcFace(CLASSES, name="predictions"),
    "cosface": lambda: CosFace(CLASSES),
    "softmax": layers.Softmax,
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("loss", [losses.ArcFace, losses.CurricularFace])
def test_a_margin_loss_on_a_head_that_puts_out_no_cosines_is_refused(loss, head):
    """It would clip the logits."""
    model = build(head=HEADS[head]())
    name = type(model.layers[-1]).__name__
    message = rf"{loss.__name__} takes cosines.*model 'tiny'.*a {name} layer.*classifier=\"cosine\""
    with pytest.raises(ValueError, match=message):
        model.compile("sgd", loss())
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))


@pytest.mark.parametrize(
    "head",
    [
        lambda: layers.Dense(CLASSES, name="cosines"),
        lambda: layers.Lambda(lambda x: x[:, :CLASSES], name="predictions"),
        lambda: PartialCosineClassifier(CLASSES, name="predictions"),
    ],
    ids=["Dense of another name", "Lambda", "PartialCosineClassifier"],
)
def test_a_margin_loss_on_a_head_that_is_not_known_passes(head):
    build(head=head()).compile("sgd", losses.ArcFace())


def test_a_margin_loss_is_compared_with_its_own_output():
    base = build()
    dense = layers.Dense(2, name="other_predictions")(base.get_layer("embedding").output)
    model = MarginModel(base.input, {"person": base.output, "other": dense})
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for given in (
        {"person": losses.ArcFace(), "other": crossentropy},
        {"person": losses.ArcFace()},
    ):
        model.compile("sgd", given)
    with pytest.raises(ValueError, match=r"CosFace takes cosines.*'other_predictions', a Dense"):
        model.compile("sgd", {"person": losses.ArcFace(), "other": losses.CosFace()})
    model = MarginModel(base.input, [base.output, dense])
    model.compile("sgd", [losses.ArcFace(), crossentropy])
    with pytest.raises(ValueError, match="'other_predictions', a Dense"):
        model.compile("sgd", [losses.ArcFace(), losses.ArcFace()])


def test_the_classifiers_in_an_ensemble_or_a_nested_model_are_looked_at():
    inner = build(head=layers.Dense(CLASSES, name="tiny_predictions"))
    average = layers.Average(name="predictions")([build(keras.Model)(inner.input), inner.output])
    model = MarginModel(inner.input, average)
    outer = keras.Input((6, 6, 1))
    for each in (model, MarginModel(outer, model(outer))):
        with pytest.raises(ValueError, match="'tiny_predictions', a Dense"):
            each.compile("sgd", losses.ArcFace())


def test_a_file_of_a_model_that_is_refused_now_is_read_without_its_loss(tmp_path, monkeypatch):
    model = build(head=HEADS["dense"]())
    with monkeypatch.context() as patch:
        patch.setattr(margin_model, "_check_cosines", lambda *_: None)
        model.compile("sgd", losses.ArcFace())
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="'tiny' is without its loss. ArcFace takes cosines"):
        again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.loss is None and again.optimizer.name == model.optimizer.name
    expected = model.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(again.predict(IMAGES, verbose=0), expected, atol=1e-6)


def test_a_nested_model_may_hold_the_classifier():
    inner = build()
    inputs = keras.Input((6, 6, 1))
    model = MarginModel(inputs, inner(inputs))
    model.compile("sgd", losses.AdaFace())
    fit(model)
    assert state_of(model)["norm_std"] != 100


def test_adaptive_losses_on_a_plain_model_say_what_they_need():
    for loss in (losses.AdaFace(), losses.CurricularFace()):
        model = build(keras.Model)
        model.compile("sgd", loss)
        with pytest.raises(ValueError, match="MarginModel"):
            fit(model)


def test_one_adaptive_loss_at_a_time():
    model = build()
    model = MarginModel(model.input, [model.output, model.output])
    with pytest.raises(ValueError, match="one adaptive margin loss"):
        model.compile("sgd", [losses.AdaFace(), losses.CurricularFace()])


def test_a_model_whose_loss_is_refused_does_not_train_with_it():
    model = build(head=layers.Dense(CLASSES, name="predictions"))
    with pytest.raises(ValueError, match="ArcFace takes cosines"):
        model.compile("sgd", loss=losses.ArcFace())
    with pytest.raises(ValueError, match="compile"):
        fit(model)
    model.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert np.isfinite(fit(model)["loss"][0])


@pytest.mark.parametrize("head", [CosineClassifier, PartialCosineClassifier])
def test_labels_may_come_in_a_list(head):
    model = build(head=head(CLASSES, name="predictions"))
    model.compile("sgd", loss=[losses.CosFace(scale=16.0)])
    history = model.fit(IMAGES[:2], [LABELS[:2]], verbose=0).history
    assert np.isfinite(history["loss"][0])


def test_a_head_that_cannot_sample_where_it_is_is_warned_of():
    inner = build(head=PartialCosineClassifier(CLASSES, name="predictions"))
    image = keras.Input((6, 6, 1))
    model = MarginModel(image, inner(image))
    with pytest.warns(UserWarning, match="not its last layer, and whose training steps see all"):
        model.compile("sgd", loss=losses.CosFace())


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of PyTorch's compiler")
@pytest.mark.parametrize("kind", ["loss", "head"])
def test_what_pytorchs_compiler_cannot_trace_is_refused(kind):
    head = PartialCosineClassifier if kind == "head" else CosineClassifier
    loss = losses.AdaFace() if kind == "loss" else losses.CosFace()
    model = build(head=head(CLASSES, name="predictions"))
    with pytest.raises(ValueError, match="jit_compile=True on PyTorch does not go with"):
        model.compile("sgd", loss=loss, jit_compile=True)
    assert not model.compiled
    model.compile("sgd", loss=loss)
    plain = build()
    plain.compile("sgd", loss=losses.CosFace(), jit_compile=True)
    assert plain.compiled
