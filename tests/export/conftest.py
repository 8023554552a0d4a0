"""One small hybrid network for all export tests, and each export made once per session."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from keras_hybrid import export

IMAGE_SHAPE = (16, 20, 3)
NEEDS = {
    "to_saved_model": ("tensorflow",),
    "to_litert": ("tensorflow", "ai_edge_litert"),
    "to_onnx": ("jax", "jax2onnx", "onnx", "onnxruntime"),
}


def skip_without(*modules: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def hybrid_network() -> keras.Model:
    """Convolutions, then one transformer block; values in [0, 255] are normalised inside."""
    image = keras.Input(IMAGE_SHAPE, name="photograph")
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = layers.Conv2D(12, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    x = keras.activations.gelu(x, approximate=False)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.PReLU(shared_axes=[1, 2])(x)
    x = layers.Conv2D(16, 2, strides=2)(x)
    x = layers.Reshape((20, 16))(x)
    tokens = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(num_heads=2, key_dim=8)(tokens, tokens)
    tokens = layers.LayerNormalization()(x)
    tokens = layers.Dense(32, activation="gelu")(tokens)
    x = x + layers.Dropout(0.1)(layers.Dense(16)(tokens))
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(24, name="embedding")(x)
    x = layers.Dense(7, dtype="float32", name="predictions")(x)
    return keras.Model(image, x, name="hybrid")


def randomize(model: keras.Model) -> keras.Model:
    """Give every weight a value of its own, so that no wrong order can go unnoticed."""
    generator = np.random.default_rng(1)
    for variable in model.variables:
        if "float" not in str(variable.dtype):
            continue
        value = keras.ops.convert_to_numpy(variable.value)
        value = value + generator.normal(0, 0.1, variable.shape)
        variable.assign(np.abs(value) if variable.name == "moving_variance" else value)
    return model


@pytest.fixture(scope="session")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return randomize(hybrid_network())


@pytest.fixture(scope="session")
def photographs() -> np.ndarray:
    generator = np.random.default_rng(2)
    coarse = generator.uniform(0, 255, (32, 4, 5, 3))
    return np.kron(coarse, np.ones((1, 4, 4, 1))).astype("uint8")


@pytest.fixture(scope="session")
def exported(
    model: keras.Model, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., export.ExportReport]:
    """Return a function that exports the session's model, each variant once."""
    folder: Path = tmp_path_factory.mktemp("exported")
    reports: dict[str, export.ExportReport] = {}

    def make(name: str, function: str, **options) -> export.ExportReport:
        skip_without(*NEEDS[function])
        if name not in reports:
            reports[name] = getattr(export, function)(model, folder / name, **options)
        return reports[name]

    return make
