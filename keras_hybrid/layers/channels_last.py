"""Layers that PyTorch computes in the layout that channels-last maps have in memory.

Keras 3.15 on PyTorch copies such maps to channels first, convolutions even back again, on the way
in and in the gradient. PyTorch needs no copy: it takes a transposed view and keeps the layout. On
other backends, and for channels-first maps, these are Keras's layers but for what they say
themselves; arguments, weights and results are Keras's everywhere (``docs/performance.md`` has what
is gained).
"""

import keras
from keras import ops

from keras_hybrid.layers.dot_product import on_cpu

__all__ = ["Conv2D", "DepthwiseConv2D", "MaxPooling2D", "Rescaling", "channels_last"]


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
    """``keras.layers.Conv2D`` without copies on PyTorch, and without oneDNN's errors in bfloat16.

    On a CPU with AMX oneDNN, which TensorFlow 2.21 and PyTorch 2.13 call, returns something else
    than the convolution (relative errors of 1.0 to 1.4, silently, its gradients being right) for
    some kernels of even width from 4 on and 4 to 30 input channels in a group. All such are
    computed in float32 on a CPU, and rounded once (``docs/performance.md``).
    """

    def convolution_op(self, inputs, kernel):
        dtype = inputs.dtype
        if single := self._may_be_wrong_in_bfloat16(inputs, kernel):
            inputs, kernel = ops.cast(inputs, "float32"), ops.cast(kernel, "float32")
        if _keras_copies(self):
            x = channels_last(
                ops.conv,
                inputs,
                kernel,
                strides=self.strides,
                padding=self.padding,
                dilation_rate=self.dilation_rate,
            )
        else:
            x = super().convolution_op(inputs, kernel)
        return ops.cast(x, dtype) if single else x

    def _may_be_wrong_in_bfloat16(self, x, kernel) -> bool:
        if self.compute_dtype != "bfloat16" or keras.backend.backend() == "jax" or not on_cpu(x):
            return False
        width, channels = kernel.shape[1:3]
        return width >= 4 and width % 2 == 0 and 4 <= channels < 32


@keras.saving.register_keras_serializable(package="keras_hybrid")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """``keras.layers.DepthwiseConv2D`` without copies on PyTorch, and trained fast in bfloat16.

    On a CPU oneDNN, which TensorFlow and PyTorch call, has no fast gradient in bfloat16 of strides,
    of kernels wider than 3 and of maps smaller than the kernel: such are trained in float32 there,
    and rounded once, as oneDNN does itself.

    Call arguments:
        inputs: Shape (batch, height, width, channels).
        training: Whether there will be a gradient.

    Returns:
        Tensor of shape (batch, new height, new width, channels · depth_multiplier).
    """

    def call(self, inputs, training=None):
        single = bool(training) and self._is_slow_in_bfloat16(inputs)
        if not (single or _keras_copies(self)):
            return super().call(inputs)
        dtype = "float32" if single else self.compute_dtype
        x = channels_last(
            ops.depthwise_conv,
            ops.cast(inputs, dtype),
            ops.cast(self.kernel, dtype),
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
        )
        x = ops.cast(x, self.compute_dtype)
        if self.use_bias:
            x = ops.add(x, self.bias)
        return x if self.activation is None else self.activation(x)

    def _is_slow_in_bfloat16(self, x) -> bool:
        if self.compute_dtype != "bfloat16" or self.data_format != "channels_last":
            return False
        if keras.backend.backend() == "jax" or not on_cpu(x):
            return False
        sides = zip(x.shape[1:3], self.kernel_size, strict=True)
        is_small = any(side is not None and side < kernel for side, kernel in sides)
        return is_small or max(self.strides) > 1 or max(self.kernel_size) > 3


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


@keras.saving.register_keras_serializable(package="keras_hybrid")
class Rescaling(keras.layers.Rescaling):
    """``keras.layers.Rescaling`` whose scales for channels are of the last axis.

    Keras takes them for those of the axis that ``keras.config.image_data_format()`` says when the
    layer is called, which need not be that of the model.

    Call arguments:
        inputs: Shape (batch, …, channels).

    Returns:
        Tensor of the same shape: inputs · scale + offset, in the layer's compute dtype.
    """

    def call(self, inputs):
        dtype, cast = self.compute_dtype, self.backend.cast
        return cast(inputs, dtype) * cast(self.scale, dtype) + cast(self.offset, dtype)
