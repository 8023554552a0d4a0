"""Batch normalisation by the backend's kernel beside Keras's operations."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_hybrid import layers
from keras_hybrid.layers import normalization
from tests.gradients import value_and_gradient

HAS_KERNEL = keras.backend.backend() in ("tensorflow", "torch")
SHAPES = {"vectors": (6, 5), "tokens": (2, 7, 5), "maps": (2, 4, 3, 5), "rank 5": (2, 2, 3, 2, 5)}
RANDOM = np.random.default_rng(0)
with_kernel = pytest.mark.skipif(not HAS_KERNEL, reason="JAX trains Keras's own layer")


def numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float64"))


@pytest.fixture
def calls(monkeypatch):
    """The shapes that a kernel was called with."""
    shapes = []
    for name in ("_tensorflow", "_torch"):
        kernel = getattr(normalization, name)

        def counted(x, *arguments, kernel=kernel):
            shapes.append(tuple(x.shape))
            return kernel(x, *arguments)

        monkeypatch.setattr(normalization, name, counted)
    return shapes


def trained(kind, x, mask=None, trainable=True, training=True, **options):
    """Return outputs, gradient and running statistics after one batch, all as float64."""
    layer = kind(momentum=0.9, **options)
    layer.build(x.shape)
    random = np.random.default_rng(1)
    layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    layer.trainable = trainable
    y, gradient = value_and_gradient(
        lambda x: ops.cast(layer(x, training=training, mask=mask), "float32") ** 3, x
    )
    return layer, [y, gradient, numpy(layer.moving_mean), numpy(layer.moving_variance)]


@with_kernel
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": False}, {"center": False, "epsilon": 1e-5}, {"center": False, "scale": False}],
    ids=["both", "unscaled", "uncentred", "neither"],
)
def test_one_kernel_gives_keras_s_outputs_gradients_and_statistics(shape, options, calls):
    x = RANDOM.normal(3.0, 2.0, size=shape).astype("float32")
    _, ours = trained(layers.BatchNormalization, x, **options)
    assert calls == [shape]
    _, theirs = trained(keras.layers.BatchNormalization, x, **options)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-5, atol=1e-5 * np.abs(their).max())


@with_kernel
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("options", [{}, {"center": False, "scale": False}], ids=["both", "none"])
def test_in_half_precision_statistics_are_of_single_precision(policy, options, calls):
    x = RANDOM.normal(3.0, 2.0, size=(8, 9, 9, 5)).astype("float32")
    options = {"dtype": policy, **options}
    layer, ours = trained(layers.BatchNormalization, x, **options)
    assert calls == [x.shape]
    assert keras.backend.standardize_dtype(layer(x, training=True).dtype) == policy[6:]
    _, theirs = trained(keras.layers.BatchNormalization, x, **options)
    for our, their, bound in zip(ours, theirs, (2e-2, 2e-2, 1e-5, 1e-5), strict=True):
        np.testing.assert_allclose(our, their, rtol=bound, atol=bound * np.abs(their).max())


@with_kernel
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"training": False}, id="inference"),
        pytest.param({"trainable": False}, id="frozen"),
        pytest.param({"mask": np.array([[True] * 7, [True] * 3 + [False] * 4])}, id="mask"),
        pytest.param({"axis": 1}, id="other axis"),
        pytest.param({"renorm": True}, id="renorm"),
        pytest.param({"dtype": "float64"}, id="float64"),
        pytest.param({"dtype": "bfloat16"}, id="bfloat16 variables"),
    ],
)
def test_what_no_kernel_does_is_keras_s(options, calls):
    x = RANDOM.normal(3.0, 2.0, size=(2, 7, 5)).astype("float32")
    _, ours = trained(layers.BatchNormalization, x, **options)
    assert calls == []
    _, theirs = trained(keras.layers.BatchNormalization, x, **options)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our, their)


@with_kernel
def test_equal_numbers_have_no_variance():
    """What a kernel divided by tells the variance only up to rounding."""
    layer, _ = trained(layers.BatchNormalization, np.full((4, 3, 3, 5), 7.0, "float32"))
    layer.moving_variance.assign(np.zeros(5))
    layer(np.full((4, 3, 3, 5), 7.0, "float32"), training=True)
    assert (numpy(layer.moving_variance) >= 0).all()
    np.testing.assert_allclose(numpy(layer.moving_variance), 0, atol=1e-9)


def test_a_step_of_fit_moves_every_weight_as_keras_s_layer_does(calls):
    x = RANDOM.normal(size=(6, 8, 8, 3)).astype("float32")
    y = RANDOM.normal(size=(6, 4)).astype("float32")
    weights = []
    for kind in (layers.BatchNormalization, keras.layers.BatchNormalization):
        keras.utils.set_random_seed(0)
        stack = [
            keras.layers.Conv2D(4, 3, use_bias=False),
            kind(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            kind(scale=False),
        ]
        model = keras.Sequential([keras.Input((8, 8, 3)), *stack])
        model.compile(keras.optimizers.SGD(0.1), loss="mse")
        model.fit(x, y, batch_size=6, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    assert bool(calls) is HAS_KERNEL
    for our, their in zip(*weights, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=1e-6)


def test_a_keras_file_brings_the_layer_back(tmp_path):
    model = keras.Sequential(
        [keras.Input((3, 3, 2)), layers.BatchNormalization(epsilon=1e-5, name="norm")]
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").get_layer("norm")
    assert type(loaded) is layers.BatchNormalization
    assert loaded.get_config() == model.get_layer("norm").get_config()
