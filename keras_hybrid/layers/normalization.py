"""Normalisations of Keras, faster or safer to export."""

import keras
from keras import ops

__all__ = ["BatchNormalization", "UnitNormalization"]

# Squared length that is still divided by.
_SMALLEST = 1e-24


@keras.saving.register_keras_serializable(package="keras_hybrid")
class BatchNormalization(keras.layers.BatchNormalization):
    """``keras.layers.BatchNormalization``, trained by the backend's own kernel.

    Keras 3.15 normalises a batch with single operations, each a pass over the map in float32,
    forwards and backwards; TensorFlow and PyTorch have one function for all of it. On CPUs it
    takes a third to a half of the time off a step of a convolutional network
    (``docs/performance.md``). Arguments, variables and results are Keras's: the running variance
    counts the batch by n, where the backends' own layers count it by n − 1.

    Keras's operations remain on JAX, whose compiler joins them, in inference, for masks,
    ``synchronized``, ``renorm``, float64, and axes that are not the last.

    Call arguments:
        inputs: Shape (batch, …, channels).
        training: Whether the batch's own statistics normalise it.
        mask: Optional, shape (batch, …): which positions count.

    Returns:
        Tensor of the same shape, in the layer's compute dtype.
    """

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable and mask is None and self._has_kernel(inputs)):
            return super().call(inputs, training=training, mask=mask)
        kernel = _tensorflow if keras.backend.backend() == "tensorflow" else _torch
        channels = inputs.shape[-1:]
        gamma = ops.convert_to_tensor(self.gamma) if self.scale else ops.ones(channels, "float32")
        beta = ops.convert_to_tensor(self.beta) if self.center else ops.zeros(channels, "float32")
        outputs, mean, variance = kernel(inputs, gamma, beta, self.epsilon)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return ops.cast(outputs, self.compute_dtype)

    def _has_kernel(self, inputs) -> bool:
        return (
            keras.backend.backend() in ("tensorflow", "torch")
            and not (self.synchronized or self.renorm)
            and self.axis in (-1, len(inputs.shape) - 1)
            and keras.backend.standardize_dtype(inputs.dtype) in ("float32", "bfloat16", "float16")
            and self.moving_mean.dtype == "float32"
        )


def _tensorflow(x, gamma, beta, epsilon):
    """Return the normalised batch, its mean, and its variance counted by n."""
    import tensorflow as tf

    shape = tf.shape(x)
    is_map = len(x.shape) == 4
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x if is_map else tf.reshape(x, (-1, 1, 1, x.shape[-1])),
        scale=gamma,
        offset=beta,
        mean=[],
        variance=[],
        epsilon=epsilon,
        is_training=True,
    )
    if not is_map:
        y = tf.reshape(y, shape)
        y.set_shape(x.shape)
    count = tf.cast(tf.reduce_prod(shape[:-1]), "float32")
    return y, mean, variance * (count - 1.0) / count


def _torch(x, gamma, beta, epsilon):
    """Return the normalised batch, its mean, and its variance counted by n."""
    import torch

    y, mean, scale = torch.native_batch_norm(
        x.movedim(-1, 1), gamma, beta, None, None, training=True, momentum=0.0, eps=epsilon
    )
    # The kernel returns no variance, but what it multiplied by.
    variance = (scale.detach() ** -2 - epsilon).clamp(min=0.0)
    return y.movedim(1, -1), mean.detach(), variance


@keras.saving.register_keras_serializable(package="keras_hybrid")
class UnitNormalization(keras.layers.UnitNormalization):
    """``keras.layers.UnitNormalization`` that never takes the root of zero.

    A vector of zeros stays one in every export: LiteRT's CPU kernels (XNNPACK) put out NaN for
    Keras's reciprocal root of zero. All else is Keras's.

    Call arguments:
        inputs: Any shape with the axes to normalise over.

    Returns:
        Tensor of the same shape, each vector of Euclidean length 1 or 0.
    """

    def call(self, inputs):
        # Half precision has no such small numbers, nor their inverse.
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        squared = ops.sum(ops.square(x), axis=self.axis, keepdims=True)
        norm = ops.rsqrt(ops.maximum(squared, _SMALLEST))
        # Without this bound converters make one operator of it, which int8 rounds to 1/128.
        return ops.cast(x * ops.minimum(norm, _SMALLEST**-0.5), self.compute_dtype)
