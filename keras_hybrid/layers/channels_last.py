"""Layers that PyTorch computes in the layout that channels-last maps have in memory.

Keras 3.15 on PyTorch copies such maps to channels first, convolutions even back again, on the way
in and in the gradient. PyTorch needs no copy: it takes a transposed view and keeps the layout. On
other backends, and for channels-first maps, these are Keras's layers; arguments, weights and
results are Keras's everywhere (``docs/performance.md`` has what it gains).
"""

import keras
from keras import ops

__all__ = ["Conv2D", "DepthwiseConv2D", "MaxPooling2D", "channels_last"]


def channels_last(function, x, *arguments, **options):
    """Return ``function``, one of ``keras.ops``, of maps (batch, height, width, channels)."""
    if keras.backend.backend() != "torch":
        return function(x, *arguments, data_format="channels_last", **options)
    view = ops.transpose(x, (0, 3, 1, 2))
    y = function(view, *arguments, data_format="channels_first", **options)
    return ops.transpose(y, (0, 2, 3, 1))


def _keras_copies(layer: keras.layers.Layer) -> bool:
    return keras.backend.backend() == "torch" and layer.data_format == "channels_last"


@keras.saving.register_keras_serializable(package="keras_hybrid")
class Conv2D(keras.layers.Conv2D):
    """``keras.layers.Conv2D`` without copies on PyTorch."""

    def convolution_op(self, inputs, kernel):
        if not _keras_copies(self):
            return super().convolution_op(inputs, kernel)
        return channels_last(
            ops.conv,
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
        )


@keras.saving.register_keras_serializable(package="keras_hybrid")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """``keras.layers.DepthwiseConv2D`` without copies on PyTorch."""

    def call(self, inputs):
        if not _keras_copies(self):
            return super().call(inputs)
        x = channels_last(
            ops.depthwise_conv,
            inputs,
            self.kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
        )
        if self.use_bias:
            x = ops.add(x, self.bias)
        return x if self.activation is None else self.activation(x)


@keras.saving.register_keras_serializable(package="keras_hybrid")
class MaxPooling2D(keras.layers.MaxPooling2D):
    """``keras.layers.MaxPooling2D`` without a copy on PyTorch, which pools copies slowly on a CPU.

    What follows would also work on two layouts at once, backwards as well.
    """

    def call(self, inputs):
        if not _keras_copies(self):
            return super().call(inputs)
        from torch.nn import functional

        x = inputs.permute(0, 3, 1, 2)
        if self.padding == "same":
            borders = []
            for axis in (3, 2):  # PyTorch names the last axis first
                size, window, stride = (
                    x.shape[axis],
                    self.pool_size[axis - 2],
                    self.strides[axis - 2],
                )
                missing = max(0, (-(-size // stride) - 1) * stride + window - size)
                borders += [missing // 2, missing - missing // 2]
            x = functional.pad(x, borders, value=-float("inf"))
        return functional.max_pool2d(x, self.pool_size, self.strides).permute(0, 2, 3, 1)
