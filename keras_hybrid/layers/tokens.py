"""Between images and tokens."""

import keras
from keras import ops

from keras_hybrid.initializers import RandomNormal

__all__ = ["ClassToken", "ImageToPatches"]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class ImageToPatches(keras.layers.Layer):
    """Cuts an image into flattened, non-overlapping square patches.

    Reshapes and one transpose, all of rank 4, so that it exports with built-in operators and costs
    no arithmetic. A patch is flattened in the order (row, column, channel), patches row by row.

    Args:
        patch_size: Side of a patch in pixels.

    Call arguments:
        inputs: Images, shape (batch, height, width, channels), height and width multiples of
            ``patch_size``.

    Returns:
        Tensor of shape (batch, patches, patch_size² · channels).

    Raises:
        ValueError: If ``patch_size`` is not positive, or the image is not a multiple of the patch.
    """

    def __init__(self, patch_size: int, **kwargs):
        super().__init__(**kwargs)
        if patch_size < 1:
            raise ValueError(f"patch_size must be a positive integer, got {patch_size}.")
        self.patch_size = patch_size
        self.input_spec = keras.layers.InputSpec(ndim=4)
        self.built = True

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        size = self.patch_size
        if height is None or width is None or height % size or width % size:
            raise ValueError(
                f"patch_size={size} needs a fixed height and width that are multiples of it, got "
                f"an input of {height}x{width}."
            )
        return (batch, (height // size) * (width // size), size * size * channels)

    def call(self, inputs):
        _, _, width, channels = inputs.shape
        _, patches, length = self.compute_output_shape(inputs.shape)
        size, columns = self.patch_size, width // self.patch_size
        # (batch · patch rows, row in patch, patch column, column in patch · channel)
        x = ops.reshape(inputs, (-1, size, columns, size * channels))
        x = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(x, (-1, patches, length))

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size}


@keras.saving.register_keras_serializable(package="keras_hybrid")
class ClassToken(keras.layers.Layer):
    """Prepends one learned token (Dosovitskiy et al. 2021, eq. 1).

    Args:
        initializer: For the token of shape (1, 1, channels). ``None``: normal with
            standard deviation 0.02.

    Call arguments:
        inputs: Tokens, shape (batch, tokens, channels).

    Returns:
        Tensor of shape (batch, 1 + tokens, channels).
    """

    def __init__(self, initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.initializer = keras.initializers.get(initializer or RandomNormal(stddev=0.02))
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def build(self, input_shape):
        self.token = self.add_weight(
            name="token", shape=(1, 1, input_shape[-1]), initializer=self.initializer
        )

    def call(self, inputs):
        token = ops.cast(self.token, inputs.dtype)
        # Adding zeros of the input's shape broadcasts over a dynamic batch without a dynamic shape.
        token = token + ops.zeros_like(inputs[:, :1, :])
        return ops.concatenate([token, inputs], axis=1)

    def compute_output_shape(self, input_shape):
        batch, tokens, channels = input_shape
        return (batch, None if tokens is None else tokens + 1, channels)

    def get_config(self):
        return {
            **super().get_config(),
            "initializer": keras.initializers.serialize(self.initializer),
        }
