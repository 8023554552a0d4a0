"""One gradient for three backends."""

import keras
import numpy as np


def value_and_gradient(function, x):
    """Return ``function(x)`` and its gradient, as NumPy arrays; several outputs are summed."""
    x = np.asarray(x)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
            total = keras.ops.sum(value)
        gradient = tape.gradient(total, x)
    elif backend == "jax":
        import jax

        def total_and_value(x):
            value = function(x)
            return keras.ops.sum(value), value

        gradient, value = jax.grad(total_and_value, has_aux=True)(jax.numpy.asarray(x))
    else:
        x = keras.ops.convert_to_tensor(x).detach().clone().requires_grad_(True)
        value = function(x)
        keras.ops.sum(value).backward()
        gradient = x.grad
        if gradient is None:
            gradient = keras.ops.zeros_like(x)
        value = value.detach()
    return keras.ops.convert_to_numpy(value), keras.ops.convert_to_numpy(gradient)
