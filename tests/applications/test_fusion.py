"""Late fusion and ensembles against their members, joined by hand."""

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid.applications import Ensemble, LateFusion, embedding_model
from tests.cases import CLASSES, IMAGES, SMALL, predict, relative_error, small_model

pytestmark = pytest.mark.any_backend


def cnn(**arguments) -> keras.Model:
    return small_model("efficientnet_*", **arguments)


def vit(**arguments) -> keras.Model:
    keras.utils.set_random_seed(1)
    return kh.create_model("vit_p8s8", **{"classes": CLASSES, **SMALL["vit_p*"], **arguments})


def embedding(model: keras.Model) -> np.ndarray:
    return predict(keras.Model(model.input, model.get_layer("embedding").output), IMAGES)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def test_late_fusion_projects_the_features_side_by_side():
    members = [cnn(), vit()]
    model = LateFusion(members=members, classes=CLASSES, embedding_dim=6)
    norm = model.get_layer("embedding_norm")
    norm.set_weights([np.linspace(0.5, 1.5, 6)] * 4)
    gamma, beta, mean, variance = norm.get_weights()
    kernels = [model.get_layer(f"{m.name}_projection").get_weights()[0] for m in members]
    joined = np.concatenate([embedding(member) for member in members], axis=-1)
    projected = joined @ np.concatenate(kernels) / 2
    expected = gamma * (projected - mean) / np.sqrt(variance + 1e-5) + beta
    assert relative_error(embedding(model), expected) <= 1e-5


def test_embeddings_of_length_one_are_averaged():
    members = [cnn(embedding_dim=16), vit()]
    model = Ensemble(members=members, classes=CLASSES)
    expected = sum(unit(embedding(member)) for member in members) / 2
    assert relative_error(embedding(model), expected) <= 1e-5


def test_similarities_of_two_images_are_averaged():
    members = [cnn(), vit()]  # of two widths
    model = Ensemble(members=members, classes=CLASSES, average="similarities")
    together = predict(embedding_model(model), IMAGES)
    apart = [unit(embedding(member)) for member in members]
    expected = sum(vectors @ vectors.T for vectors in apart) / 2
    np.testing.assert_allclose(together @ together.T, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("average", "classifier", "activation"),
    [
        ("logits", "dense", None),
        ("logits", "cosine", None),
        ("probabilities", "dense", None),
        ("probabilities", "dense", "softmax"),
    ],
)
def test_answers_are_averaged(average, classifier, activation, tmp_path):
    head = {"classifier": classifier, "classifier_activation": activation}
    members = [cnn(**head), vit(**head)]
    model = Ensemble(members=members, classes=CLASSES, average=average)
    answers = [predict(member, IMAGES) for member in members]
    if average == "probabilities" and activation is None:
        answers = [softmax(answer) for answer in answers]
    np.testing.assert_allclose(predict(model, IMAGES), sum(answers) / 2, atol=1e-6)
    assert model.layers[-1].name == "predictions"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(predict(loaded, IMAGES), predict(model, IMAGES), atol=1e-6)
    assert predict(embedding_model(loaded), IMAGES).shape == (len(IMAGES), 8 + 16)


def test_members_by_name_have_the_classifier_that_is_asked_for():
    members = SMALL["ensemble_*"]["members"]
    arguments = {"input_shape": (16, 16, 3), "classes": CLASSES, "average": "logits"}
    model = Ensemble(members=members, **arguments)
    heads = [layer for layer in model.layers if isinstance(layer, kh.layers.CosineClassifier)]
    assert len(heads) == 2 and np.abs(predict(model, IMAGES)).max() <= 1
    model = Ensemble(members=members, classifier="dense", **arguments)
    assert model.get_layer("vit_p8s8_predictions").units == CLASSES


def test_members_by_name_have_the_activation_that_is_asked_for():
    model = Ensemble(
        members=SMALL["ensemble_*"]["members"],
        input_shape=(16, 16, 3),
        classes=CLASSES,
        average="logits",
        classifier="dense",
        classifier_activation="softmax",
    )
    np.testing.assert_allclose(predict(model, IMAGES).sum(axis=-1), 1, atol=1e-6)


def test_images_are_resized_to_a_member_of_another_size():
    members = [cnn(), vit(input_shape=(32, 24, 3))]
    model = Ensemble(members=members, average="similarities", classes=CLASSES)
    assert model.input_shape == (None, 16, 16, 3)
    image = keras.Input((16, 16, 3))
    resized = keras.layers.Resizing(32, 24)(image)
    alone = keras.Model(image, embedding_model(members[1])(resized))
    assert relative_error(embedding(model)[:, 8:], predict(alone, IMAGES)) <= 1e-5


def test_any_functional_or_sequential_model_of_an_image_is_a_member():
    sequential = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3, strides=2)], name="convolution"
    )
    image = keras.Input((16, 16, 3))
    features = keras.layers.Dense(5)(keras.layers.Flatten()(image))
    functional = keras.Model(image, features, name="linear")
    model = Ensemble(members=[sequential, functional], average="similarities", classes=CLASSES)
    maps, vectors = (predict(member, IMAGES) for member in (sequential, functional))
    expected = np.concatenate([unit(maps.mean(axis=(1, 2))), unit(vectors)], axis=-1)
    assert relative_error(embedding(model), expected) <= 1e-5


def test_members_are_copied_and_may_have_one_name():
    members = [vit(), vit(), vit()]
    members[1].get_layer("norm").gamma.assign(np.zeros(16))
    members[1].get_layer("norm").beta.assign(np.ones(16))
    model = Ensemble(members=members, classes=CLASSES)
    first, middle = (unit(embedding(member)) for member in members[:2])
    assert relative_error(embedding(model), (2 * first + middle) / 3) <= 1e-5
    before = [member.get_weights() for member in members]
    model.compile(keras.optimizers.SGD(1.0), kh.losses.AdaFace())
    model.fit(IMAGES, np.arange(len(IMAGES)) % CLASSES, verbose=0)
    for member, weights in zip(members, before, strict=True):
        for ours, theirs in zip(member.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_what_is_frozen_in_a_member_is_frozen_in_its_copy():
    member = vit()
    member.get_layer("block0_attention").qkv.trainable = False
    member.get_layer("norm").trainable = False
    frozen = {v.path for v in member.weights} - {v.path for v in member.trainable_variables}
    model = Ensemble(members=[cnn(), member], average="similarities", classes=CLASSES)
    paths = {v.path for v in model.trainable_variables}
    assert {v.path for v in model.weights} - paths >= {f"vit_p8s8_{path}" for path in frozen}
    assert len(frozen) == 3 and "vit_p8s8_block0_attention/projection/kernel" in paths


def test_a_member_by_name_brings_the_weights_it_is_told(tmp_path):
    member = vit()
    member.save_weights(tmp_path / "vit.weights.h5")
    arguments = {**SMALL["vit_p*"], "weights": tmp_path / "vit.weights.h5"}
    model = Ensemble(members=[("vit_p8s8", arguments), member], classes=CLASSES)
    assert model.input_shape == (None, 16, 16, 3)
    assert relative_error(embedding(model), unit(embedding(member))) <= 1e-5


def test_explanations_see_the_layers_of_the_members():
    model = LateFusion(members=[cnn(), vit()], classes=CLASSES)
    maps = kh.explain.attention_maps(model, IMAGES)
    blocks = SMALL["vit_p*"]["depth"]
    assert list(maps) == [f"vit_p8s8_block{i}_attention" for i in range(blocks)]
    heat = kh.explain.grad_cam(model, IMAGES, layer="efficientnet_b0_top_activation")
    assert heat.shape == IMAGES.shape[:3] and np.isfinite(heat).all()


class _Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    ("members", "arguments", "message"),
    [
        ([vit], {}, "members must be two models or more, got 1"),
        ([vit, _Subclassed], {}, "members must be Functional or Sequential.*_Subclassed"),
        ([vit, lambda: 3], {}, "members must be Functional or Sequential.*got 3"),
        ([vit, lambda: "vit_p8"], {}, "No model is named 'vit_p8'.*vit_p8s8"),
        ([vit, cnn], {}, r"one width, got \[16, 8\].*'similarities'"),
        ([vit, vit], {"average": "mean"}, "average must be one of .*'similarities'.*got 'mean'"),
        ([vit, vit], {"average": "logits", "classes": 7}, "classes=7, but member .* has 3"),
        ([vit, vit], {"average": "probabilities"}, "puts out cosines.*average='logits'"),
        (
            [lambda: vit(classifier="dense", classifier_activation="sigmoid"), vit],
            {"average": "probabilities"},
            "needs classifiers with classifier_activation=None or 'softmax'.*'sigmoid'",
        ),
        (
            [lambda: "vit_p8s8", lambda: "efficientnet_b0"],
            {
                "average": "probabilities",
                "classifier": "dense",
                "classifier_activation": "relu",
                "input_shape": (32, 32, 3),
            },
            "None or 'softmax', but that of 'vit_p8s8' is 'relu'",
        ),
        (
            [lambda: "vit_p8s8", vit],
            {"average": "logits", "classifier": "dense", "classifier_activation": "softmax"},
            "classifier_activation must be None where average='logits'.*'vit_p8s8'.*got 'softmax'",
        ),
        (
            [vit, lambda: vit(include_top=False, pooling="avg")],
            {"average": "logits"},
            "needs members with a layer 'predictions' on a layer 'embedding'",
        ),
        (
            [vit, lambda: vit(input_shape=(16, 16, 1))],
            {},
            "takes 1 and the input has 3",
        ),
    ],
)
def test_members_that_make_no_ensemble_are_refused(members, arguments, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(members=[member() for member in members], **{"classes": CLASSES, **arguments})


def test_a_member_may_have_a_dot_in_its_name():
    image = keras.Input(IMAGES.shape[1:])
    vector = keras.layers.Dense(8)(keras.layers.Flatten()(image))
    dotted = keras.Model(image, vector, name="net_1.00_16")
    model = LateFusion(members=[dotted, small_model("vit_p*")], classes=CLASSES, embedding_dim=8)
    assert model.get_layer("net_1_00_16_" + dotted.layers[-1].name)
    assert predict(model, IMAGES).shape == (len(IMAGES), CLASSES)


def test_weights_of_members_with_names_of_keras_own_are_read_whatever_was_made_before(tmp_path):
    def fused(**arguments):
        member = keras.Sequential(
            [keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(8)]
        )
        members = [member, small_model("vit_p*")]
        return LateFusion(members=members, classes=CLASSES, embedding_dim=8, **arguments)

    model = fused()
    for name in ("all.weights.h5", "all.keras"):
        file = tmp_path / name
        model.save(file) if name.endswith(".keras") else model.save_weights(file)
        assert relative_error(predict(fused(weights=file), IMAGES), predict(model, IMAGES)) <= 1e-6
