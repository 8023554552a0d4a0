"""Models whose attention maps are computed again in the backward pass."""

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid.layers import dot_product
from tests.cases import SMALL, family_of

# One for each layer that has maps, a subclass that mixes them, and an ensemble of models.
MODELS = ("facerec_small", "convit_ti", "cvt_13", "resnet50_fct", "ensemble_efficientnet_vit")


def losses(name, remat):
    keras.utils.set_random_seed(0)
    small = SMALL[family_of(name)]
    model = kh.create_model(name, remat=remat, **{**small, "classes": 4, "classifier": "dense"})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss)
    images = np.random.default_rng(0).uniform(0, 255, (4, *model.input_shape[1:]))
    return model.fit(images, np.arange(4), epochs=3, shuffle=False, verbose=0).history["loss"]


@pytest.mark.parametrize("name", MODELS)
def test_training_has_the_same_losses(name, monkeypatch):
    seen = []
    remat = keras.remat
    monkeypatch.setattr(keras, "remat", lambda function: seen.append(1) or remat(function))
    monkeypatch.setattr(dot_product, "_has_fused_kernel", lambda *_: False)
    expected = losses(name, False)
    assert not seen
    np.testing.assert_allclose(losses(name, True), expected, rtol=1e-3)
    assert seen


def test_inference_keeps_nothing_and_has_no_use_for_it(monkeypatch):
    monkeypatch.setattr(keras, "remat", lambda function: pytest.fail("computed again"))
    model = kh.create_model("facerec_small", remat=True, **SMALL[family_of("facerec_small")])
    model(np.zeros((1, *model.input_shape[1:]), "float32"), training=False)


def test_it_is_saved_with_the_model(tmp_path):
    model = kh.create_model("facerec_small", remat=True, **SMALL[family_of("facerec_small")])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    kept = [layer.remat for layer in again.layers if hasattr(layer, "remat")]
    assert kept and all(kept)


@pytest.mark.parametrize("name", ["mobilefacenet", "nat_mini_32", "botnet50_cifar"])
def test_a_model_without_attention_that_supports_it_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' has no attention layer that supports remat"):
        kh.create_model(name, remat=True, **SMALL[family_of(name)])
