"""Max pooling that PyTorch does in the layout that the maps have."""

import keras

__all__ = ["MaxPooling2D"]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class MaxPooling2D(keras.layers.MaxPooling2D):
    """``keras.layers.MaxPooling2D``, several times as fast on PyTorch for channels-last maps.

    On PyTorch, Keras 3.15 copies such maps to channels first; PyTorch pools those slowly on a CPU,
    and what follows works on two layouts at once, backwards as well (``docs/performance.md``). On
    other backends, and for channels-first maps, this is Keras's layer. Arguments and results are
    Keras's.
    """

    def call(self, inputs):
        if keras.backend.backend() != "torch" or self.data_format != "channels_last":
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
