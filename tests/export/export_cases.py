"""The network that the export tests share, and what each export needs installed."""

import importlib.util

import keras
import numpy as np
import pytest
from keras import layers

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
    x = layers.MaxPooling2D(3, strides=1, padding="same")(x)
    x = layers.Conv2D(32, 2, strides=2)(x)
    x = layers.Reshape((20, 32))(x)
    tokens = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(num_heads=2, key_dim=16)(tokens, tokens)
    tokens = layers.LayerNormalization()(x)
    tokens = layers.Dense(64, activation="gelu")(tokens)
    x = x + layers.Dropout(0.1)(layers.Dense(32)(tokens))
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
