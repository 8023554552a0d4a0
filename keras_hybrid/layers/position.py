"""Where a token is: absolute embeddings and relative biases."""

import keras
import numpy as np
from keras import ops

from keras_hybrid.initializers import RandomNormal

__all__ = ["LearnedPositionEmbedding", "RelativePositionBias", "SinusoidalPositionEmbedding"]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class LearnedPositionEmbedding(keras.layers.Layer):
    """Adds one learned vector to each token.

    Args:
        initializer: For the table of shape (1, tokens, channels). ``None``: normal with
            standard deviation 0.02.

    Call arguments:
        inputs: Tokens, shape (batch, tokens, channels), the number of tokens fixed.
    """

    def __init__(self, initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.initializer = keras.initializers.get(initializer or RandomNormal(stddev=0.02))

    def build(self, input_shape):
        self.embedding = self.add_weight(
            name="embedding", shape=(1, *input_shape[1:]), initializer=self.initializer
        )

    def call(self, inputs):
        return inputs + ops.cast(self.embedding, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "initializer": keras.initializers.serialize(self.initializer),
        }


@keras.saving.register_keras_serializable(package="keras_hybrid")
class SinusoidalPositionEmbedding(keras.layers.Layer):
    """Adds the fixed table of Vaswani et al. 2017, section 3.5: sines even, cosines odd.

    ``table[n, 2i] = sin(n / base^(2i / channels))`` and ``table[n, 2i + 1]`` the cosine of the
    same angle. The table is computed, not stored: it adds nothing to the parameter count.

    Args:
        base: Longest wavelength over 2π.

    Call arguments:
        inputs: Tokens, shape (batch, tokens, channels), both fixed and the channels even.
    """

    def __init__(self, base: float = 10_000.0, **kwargs):
        super().__init__(**kwargs)
        self.base = base
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def build(self, input_shape):
        tokens, channels = input_shape[1:]
        if tokens is None:
            raise ValueError(
                f"Sinusoidal positions need a fixed number of tokens, got shape {input_shape}."
            )
        if channels % 2:
            raise ValueError(f"Sinusoidal positions need an even number of channels: {channels}.")
        frequency = self.base ** (-np.arange(0, channels, 2) / channels)
        angle = np.arange(tokens)[:, np.newaxis] * frequency
        table = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(1, tokens, channels)
        self.table = table.astype("float32")

    def call(self, inputs):
        return inputs + ops.convert_to_tensor(self.table, dtype=inputs.dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "base": self.base}


@keras.saving.register_keras_serializable(package="keras_hybrid")
class RelativePositionBias(keras.layers.Layer):
    """Learned attention logits that depend on the offset between query and key on a grid.

    The table of Swin (Liu et al. 2021, eq. 4): row ``(dy + h - 1)(2w - 1) + (dx + w - 1)`` with
    d = query − key.

    Args:
        grid_size: (height, width) of the grid whose row-major cells are the tokens.
        num_heads: Number of heads.

    Call arguments:
        inputs: The tokens, shape (batch, height · width, channels); only their number is looked at.

    Returns:
        Logits of shape (1, num_heads, tokens, tokens).

    Raises:
        ValueError: If ``num_heads`` is not positive, or the number of tokens not height · width.
    """

    def __init__(self, grid_size: tuple[int, int], num_heads: int, **kwargs):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"num_heads must be a positive integer, got {num_heads}.")
        self.grid_size = tuple(grid_size)
        self.num_heads = num_heads
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def build(self, input_shape):
        height, width = self.grid_size
        if input_shape[1] != height * width:
            raise ValueError(
                f"grid_size={self.grid_size} has {height * width} cells, but the input has "
                f"{input_shape[1]} tokens."
            )
        self.table = self.add_weight(
            name="table",
            shape=((2 * height - 1) * (2 * width - 1), self.num_heads),
            initializer=RandomNormal(stddev=0.02),
        )
        row, column = np.divmod(np.arange(height * width), width)
        dy = row[:, np.newaxis] - row[np.newaxis] + height - 1
        dx = column[:, np.newaxis] - column[np.newaxis] + width - 1
        self._index = (dy * (2 * width - 1) + dx).astype("int32").reshape(-1)

    def call(self, inputs):
        tokens = inputs.shape[1]
        bias = ops.take(ops.cast(self.table, self.compute_dtype), self._index, axis=0)
        bias = ops.reshape(bias, (1, tokens, tokens, self.num_heads))
        return ops.transpose(bias, (0, 3, 1, 2))

    def compute_output_shape(self, input_shape):
        return (1, self.num_heads, input_shape[1], input_shape[1])

    def get_config(self):
        return {
            **super().get_config(),
            "grid_size": self.grid_size,
            "num_heads": self.num_heads,
        }
