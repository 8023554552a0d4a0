"""Muon's orthogonal updates: of matrices as Keras computes them, and of convolutions."""

import keras
import numpy as np
import pytest

import keras_hybrid as kh
from keras_hybrid.optimizers import Muon


def small_model():
    """A grey input, then every kind of kernel there is."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(6, 3, name="first")(inputs)
    x = keras.layers.Conv2D(10, 3, name="convolution")(x)
    x = keras.layers.Conv2D(4, 1, groups=2, name="grouped")(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.Conv2D(5, 2, name="patch_embedding")(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(7, name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="predictions")(x))


@pytest.mark.parametrize(
    ("exclude_embeddings", "more"), [(True, set()), (False, {"patch_embedding"})]
)
def test_which_variables_have_orthogonal_updates(exclude_embeddings, more):
    model = small_model()
    optimizer = Muon(exclude_layers=["^pred"], exclude_embeddings=exclude_embeddings)
    muon = {v.path for v in model.trainable_variables if not optimizer._should_use_adamw(v)}
    expected = {"convolution", "grouped", "hidden"} | more
    assert muon == {f"{name}/kernel" for name in expected}


def test_positions_and_image_kernels_are_adamw_s():
    optimizer = Muon()
    table = keras.Variable(np.zeros((1, 7, 7, 32)), name="position")
    assert optimizer._should_use_adamw(table)
    for channels in (1, 3):
        kernel = keras.Variable(np.zeros((3, 3, channels, 32)), name="kernel")
        assert optimizer._should_use_adamw(kernel)


@pytest.mark.parametrize("name", ["table", "height_table", "embedding", "centers"])
def test_of_matrices_kernels_alone_are_orthogonalised(name):
    optimizer = Muon(exclude_embeddings=False)
    assert optimizer._should_use_adamw(keras.Variable(np.zeros((7, 32)), name=name))
    assert not optimizer._should_use_adamw(keras.Variable(np.zeros((7, 32)), name="kernel"))


def test_a_string_is_no_list_of_patterns():
    message = r"exclude_layers must be a list .*got the string 'pred.*'; write \['predictions'\]"
    with pytest.raises(ValueError, match=message):
        Muon(exclude_layers="predictions")


@pytest.mark.parametrize("shape", [(3, 3, 4, 8), (1, 1, 4, 16), (3, 3, 8, 5)])
def test_a_kernel_moves_as_keras_moves_its_matrix(shape):
    """Three steps of ours on the kernel, of Keras's on the matrix."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=shape).astype("float32")
    gradients = rng.normal(size=(3, *shape)).astype("float32")
    kernel = keras.Variable(start, name="kernel")
    matrix = keras.Variable(start.reshape(-1, shape[-1]), name="kernel")
    ours = Muon(0.1, weight_decay=0.5)
    keras_s = keras.optimizers.Muon(0.1, weight_decay=0.5)
    for gradient in gradients:
        ours.apply([keras.ops.convert_to_tensor(gradient)], [kernel])
        flat = gradient.reshape(-1, shape[-1])
        keras_s.apply([keras.ops.convert_to_tensor(flat)], [matrix])
    moved = keras.ops.convert_to_numpy(kernel)
    assert np.abs(moved - start).max() > 0.01
    np.testing.assert_allclose(
        moved.reshape(-1, shape[-1]), keras.ops.convert_to_numpy(matrix), rtol=1e-5, atol=1e-6
    )


def test_an_update_has_singular_values_near_one_and_keeps_its_directions():
    """Second derivation: U·Vᵀ of NumPy's decomposition; Newton–Schulz ends within 0.3 of it."""
    rng = np.random.default_rng(1)
    gradient = rng.normal(size=(3, 3, 6, 12)).astype("float32")
    update = keras.ops.convert_to_numpy(
        Muon().zeropower_via_newtonschulz5(keras.ops.convert_to_tensor(gradient), 5)
    )
    assert update.shape == gradient.shape
    u, _, v = np.linalg.svd(gradient.reshape(-1, 12), full_matrices=False)
    inside = u.T @ update.reshape(-1, 12) @ v.T
    np.testing.assert_allclose(np.diag(inside), 1.0, atol=0.35)
    np.testing.assert_allclose(inside - np.diag(np.diag(inside)), 0.0, atol=2e-2)


def test_fit_and_the_round_trip_of_a_compiled_model(tmp_path):
    model = small_model()
    model.compile(
        kh.optimizers.Muon(1e-2, exclude_layers=["predictions"], adam_lr_ratio=0.1),
        loss="sparse_categorical_crossentropy",
    )
    images = np.random.default_rng(2).normal(size=(8, 8, 8, 1)).astype("float32")
    labels = np.arange(8) % 3
    model.fit(images, labels, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is Muon
    assert again.optimizer.get_config() == model.optimizer.get_config()
    # The optimizer's state came along: both take the same next step.
    for each in (model, again):
        each.fit(images, labels, batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
