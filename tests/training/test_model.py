import dataclasses
import json
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid import data
from tests import cases
from tests.training.test_train import TINY
from training import train
from training.model import (
    begin_with_trained,
    build_loss,
    build_model,
    build_optimizer,
    without_weight_decay,
)


@pytest.mark.any_backend
def test_arguments_that_only_the_model_can_judge_are_named_when_it_is_built():
    with pytest.raises(ValueError, match=r"model_arguments=\{'mlp_ratio.* do not fit vit_ti16: "):
        build_model(dataclasses.replace(TINY, model_arguments={"mlp_ratio": "six"}), 4, 4)


# The names of all trainable variables that are no kernels and no centres of classes.
SPARED = {
    *("bias", "beta", "gamma", "scale", "alpha"),  # alpha: a PReLU's slopes
    *("token", "embedding", "gate", "table", "height_table", "width_table"),
}


def small_arguments(name):
    """The smallest form of a model."""
    small = dict(cases.SMALL[cases.family_of(name)])
    if name.startswith("san_proposed"):
        small["widths"] = (small["stem_channels"],) * 2  # it has no transitions
    if name == "conformer_ti_32":
        small["patch_size"] = 4
    return small


@pytest.mark.any_backend
@pytest.mark.parametrize("name", kh.list_models())
def test_of_every_model_kernels_and_centres_decay_and_muon_takes_kernels_alone(name):
    with cases.without_weights():
        model = kh.create_model(name, classes=3, classifier="cosine", **small_arguments(name))
    spared = {id(v) for v in without_weight_decay(model)}
    muon = build_optimizer(dataclasses.replace(TINY, optimizer="muon"), 4)
    for v in model.trainable_variables:
        assert v.name in SPARED | {"kernel", "centers"}, v.path  # a new name needs a decision
        assert (id(v) in spared) == (v.name in SPARED), v.path
        assert muon._should_use_adamw(v) or v.name == "kernel", v.path


@pytest.mark.any_backend
def test_weight_decay_spares_vectors_and_positions():
    model = build_model(TINY, 4, 4)
    spared = {v.path for v in without_weight_decay(model)}
    for v in model.trainable_variables:
        if v.path.endswith(("bias", "gamma", "beta")) or "position_embedding" in v.path:
            assert v.path in spared
    decayed = {v.path for v in model.trainable_variables} - spared
    assert any(path.endswith("predictions/centers") for path in decayed)
    assert any("patch_embedding/kernel" in path for path in decayed)
    assert any(path.endswith("block0_attention/qkv/kernel") for path in decayed)
    assert decayed == {
        v.path for v in model.trainable_variables if model.optimizer._use_weight_decay(v)
    }


@pytest.mark.any_backend
def test_muon_takes_matrices_and_convolutions_and_adamw_the_rest():
    block = r"block\d+_(attention/(qkv|projection)|mlp_dense[12])"
    attention = r"block\d+_convolutional_attention/(query|key)"
    others = r"stem[12]_conv|tap[012]_conv|places_projection|embedding_projection"
    recipe = dataclasses.replace(
        TINY,
        model="facerec_small",
        model_arguments={"depth": 1},
        optimizer="muon",
        schedule="constant",
        learning_rate=1e-3,
        matrix_learning_rate=4e-3,
        weight_decay=0.08,
        matrix_weight_decay=0.1,
    )
    model = build_model(recipe, 4, 4)
    optimizer = model.optimizer
    adam = {v.path for v in model.trainable_variables if optimizer._should_use_adamw(v)}
    matrices = {v.path for v in model.trainable_variables} - adam
    assert matrices == {
        v.path
        for v in model.trainable_variables
        if re.fullmatch(rf"({block}|{attention}|{others})/kernel", v.path)
    }
    assert {"stem0_conv/kernel", "stem1_conv/kernel", "tap0_conv/kernel"} & adam == {
        "stem0_conv/kernel"
    }
    rate = float(optimizer.learning_rate)
    assert rate == pytest.approx(4e-3)
    assert rate * optimizer.adam_lr_ratio == pytest.approx(1e-3)
    # Both kinds decay by their own rate times their own decay, as AdamW does.
    assert rate * optimizer.adam_weight_decay == pytest.approx(1e-3 * 0.08)
    assert rate * optimizer.weight_decay == pytest.approx(4e-3 * 0.1)


def test_the_paper_s_schedule_restarts():
    recipe = dataclasses.replace(TINY, schedule="cosine_restarts", restart_steps=10)
    schedule = build_optimizer(recipe, 4)._learning_rate
    rates = [float(schedule(step)) for step in (0, 5, 9, 10)]
    assert rates[0] == pytest.approx(3e-3) == pytest.approx(rates[3])
    assert rates[0] > rates[1] > rates[2]


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("arcface", "ArcFace"),
        ("sphereface", "SphereFace"),
        ("curricularface", "CurricularFace"),
        ("adaface", "AdaFace"),
        ("cosface", "CosFace"),
    ],
)
def test_a_recipe_s_loss_gets_its_margin_and_scale(loss, kind):
    built = build_loss(dataclasses.replace(TINY, loss=loss, margin=0.25, scale=20.0))
    assert type(built).__name__ == kind
    config = built.get_config()
    assert (config["margin"], config["scale"]) == (0.25, 20.0)


def test_softmax_is_a_margin_of_zero():
    built = build_loss(dataclasses.replace(TINY, loss="softmax"))
    assert built.get_config()["margin"] == 0.0


@pytest.mark.any_backend
def test_one_cycle_rises_in_three_tenths_and_falls_to_almost_nothing():
    recipe = dataclasses.replace(TINY, schedule="one_cycle", epochs=10, learning_rate=1.0)
    schedule = build_optimizer(recipe, 10)._learning_rate
    rates = [float(schedule(step)) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[30] == pytest.approx(1.0, rel=0.01) == max(rates)
    assert rates[100] < 1e-5
    assert sorted(rates[:31]) == rates[:31] and sorted(rates[31:], reverse=True) == rates[31:]


@pytest.mark.any_backend
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon", "sgd"])
def test_gradients_are_clipped_by_their_norm_over_all_variables(optimizer):
    """SGD without momentum moves all weights together by the rate times that norm."""
    recipe = dataclasses.replace(
        TINY,
        optimizer=optimizer,
        schedule="constant",
        learning_rate=1.0,
        momentum=0.0,
        weight_decay=0.0,
        clip_norm=0.25,
    )
    assert build_optimizer(recipe, 4).global_clipnorm == 0.25
    assert build_optimizer(dataclasses.replace(recipe, clip_norm=None), 4).global_clipnorm is None
    if optimizer != "sgd":
        return
    images, labels = data.synthetic_identities(4, 4, image_size=TINY.image_size)

    def movement(clip_norm):
        keras.utils.set_random_seed(0)
        model = build_model(dataclasses.replace(recipe, clip_norm=clip_norm), 4, 4)
        before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
        model.train_on_batch(images.astype("float32"), labels)
        after = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
        squares = [((b - a) ** 2).sum() for a, b in zip(before, after, strict=True)]
        return float(np.sqrt(sum(squares)))

    free = movement(None)
    assert free > 1  # else nothing is clipped
    assert movement(0.25) == pytest.approx(0.25, rel=1e-3)
    assert movement(2 * free) == pytest.approx(free, rel=1e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """TINY's network for 4 identities with weights of its own: its file and its layers' weights."""
    keras.utils.set_random_seed(7)
    model = build_model(TINY, 4, 4)
    for variable in model.trainable_variables:
        variable.assign(keras.random.normal(variable.shape, stddev=0.1))
    path = tmp_path_factory.mktemp("trained") / "last.keras"
    model.save(path)
    return path, {layer.name: layer.get_weights() for layer in model.layers}


NEW_CLASSES = {
    "memory": {},
    "lazy": {"reading": "lazy", "workers": 2},
    "sampled": {"sampling_rate": 0.5},
}


@pytest.mark.parametrize("changes", NEW_CLASSES.values(), ids=NEW_CLASSES)
def test_training_begins_with_the_weights_of_a_file_and_the_mean_embeddings_of_new_classes(
    trained, tmp_path, changes, monkeypatch, capsys
):
    """Trained at next to no rate, a run ends with what it began with."""
    monkeypatch.setattr(train, "_tensorboard", lambda folder: [])
    path, expected = trained
    recipe = dataclasses.replace(
        TINY,
        initial_weights=str(path),
        data="synthetic:36x3",
        learning_rate=1e-12,
        weight_decay=0.0,
        epochs=1,
        **changes,
    )
    train.run(recipe, tmp_path, verbose=0)
    printed = capsys.readouterr().out
    assert f"layers have weights of {path}; 1 begin anew: predictions.\n" in printed
    assert "Classes begin with the mean embedding of 16 images each." in printed
    found = keras.saving.load_model(tmp_path / "last.keras", compile=False)
    for layer in found.layers:
        if layer.weights and layer.name != "predictions":
            for a, b in zip(layer.get_weights(), expected[layer.name], strict=True):
                np.testing.assert_allclose(a, b, atol=1e-6)
    images = data.load_arrays(train.open_data(recipe)[0], 16)
    embeddings, _ = kh.evaluation.embed(found, images.images)
    means = np.stack([embeddings[images.labels == label].mean(axis=0) for label in range(36)])
    centers = found.get_layer("predictions").get_weights()[0]
    cosines = (means * centers).sum(axis=1)
    cosines /= np.linalg.norm(means, axis=1) * np.linalg.norm(centers, axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    train.run(recipe, tmp_path, verbose=0)  # a run that is continued has begun already
    assert "layers have weights" not in capsys.readouterr().out


@pytest.mark.any_backend
def test_the_same_classes_keep_their_classifier_and_another_size_interpolates(trained, capsys):
    path, expected = trained
    recipe = dataclasses.replace(TINY, initial_weights=str(path), image_size=32)
    model = build_model(recipe, 4, 4)
    begin_with_trained(recipe, model, None)
    layers = [layer for layer in model.layers if layer.weights]
    message = f"{len(layers)} of {len(layers)} layers have weights of {path}.\n"
    assert capsys.readouterr().out == message
    for name in ("predictions", "patch_embedding"):
        for a, b in zip(model.get_layer(name).get_weights(), expected[name], strict=True):
            np.testing.assert_array_equal(a, b)
    assert model.get_layer("position_embedding").get_weights()[0].shape[1] == 1 + 16


@pytest.mark.any_backend
@pytest.mark.parametrize("is_known", [True, False])
def test_as_many_other_people_have_centres_of_their_own(trained, is_known, tmp_path, capsys):
    path, expected = trained
    path = pathlib.Path(shutil.copy(path, tmp_path))
    recipe = dataclasses.replace(TINY, initial_weights=str(path), data="synthetic:4x5")
    images, _ = train.load_data(recipe)
    names = images.class_names if is_known else ["Ada", "Emmy", "Grace", "Sophie"]
    (tmp_path / "results.json").write_text(json.dumps({"class_names": names}))
    model = build_model(recipe, 4, 4)
    begin_with_trained(recipe, model, images)
    assert ("1 begin anew: predictions." in capsys.readouterr().out) is not is_known
    (centers,) = model.get_layer("predictions").get_weights()
    assert np.allclose(centers, expected["predictions"][0]) is is_known


@pytest.mark.any_backend
def test_initial_weights_that_do_not_fit_are_named(trained, tmp_path):
    recipe = dataclasses.replace(TINY, data="nowhere/", initial_weights="nowhere.keras")
    with pytest.raises(ValueError, match=r"initial_weights must be an existing \.keras file; got"):
        train.run(recipe, tmp_path, verbose=0)
    recipe = dataclasses.replace(TINY, initial_weights=str(trained[0]))
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="another")])
    with pytest.raises(ValueError, match="no layer of model 'vit_ti16' fits one of 'sequential"):
        begin_with_trained(recipe, network, None)
    damaged = tmp_path / "damaged.keras"
    damaged.write_bytes(trained[0].read_bytes()[:2000])
    recipe = dataclasses.replace(recipe, initial_weights=str(damaged))
    with pytest.raises(ValueError, match=r"damaged\.keras cannot be loaded"):
        begin_with_trained(recipe, network, None)
