"""Attention whose queries, keys and values come from convolutions of the tokens' grid."""

import math

import keras
import numpy as np
from keras import ops

from keras_hybrid.initializers import RandomNormal, RandomUniform
from keras_hybrid.layers.channels_last import DepthwiseConv2D, channels_last
from keras_hybrid.layers.composite import CompositeLayer
from keras_hybrid.layers.dot_product import attend, attention_map
from keras_hybrid.layers.normalization import BatchNormalization

__all__ = ["ConvolutionalProjection", "ConvolutionalProjectionAttention"]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class ConvolutionalProjection(CompositeLayer):
    """Projects tokens by what surrounds them: ``Linear(BN(DepthwiseConv(grid)))``.

    CvT, Wu et al. 2021, eq. 2. A stride thins the tokens out. The class token has no place in the
    grid: it skips the convolution and takes part in the linear map only.

    Args:
        grid_size: (height, width) of the grid whose row-major cells are the tokens.
        class_token: Whether a class token precedes the grid.
        strides: Of the convolution.
        kernel_size: Of the convolution, odd; half of it is padded on every side.
        use_bias: Whether the linear map has a bias.
        shortcut: Whether the token itself is added, for a stride the mean of the cells that one
            output cell stands for (fewer at an odd border).

    Call arguments:
        inputs: Tokens, shape (batch, [1 +] height · width, channels).

    Returns:
        Tensor of shape (batch, [1 +] ⌈height / strides⌉ · ⌈width / strides⌉, channels).

    Raises:
        ValueError: If the number of tokens is not that of the grid.
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        class_token: bool = False,
        strides: int = 1,
        kernel_size: int = 3,
        use_bias: bool = True,
        shortcut: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}.")
        self.grid_size = tuple(grid_size)
        self.class_token = class_token
        self.strides = strides
        self.kernel_size = kernel_size
        self.use_bias = use_bias
        self.shortcut = shortcut
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def build(self, input_shape):
        _, tokens, channels = input_shape
        cells = self.grid_size[0] * self.grid_size[1]
        if tokens != cells + self.class_token:
            raise ValueError(
                f"grid_size={self.grid_size} has {cells} cells and class_token="
                f"{self.class_token}, but the input has {tokens} tokens."
            )
        # Keras pads strided convolutions on one side.
        self._padding = self.kernel_size // 2 if self.strides > 1 else 0
        bound = 1.0 / self.kernel_size
        self.convolution = DepthwiseConv2D(
            self.kernel_size,
            strides=self.strides,
            padding="valid" if self._padding else "same",
            data_format="channels_last",
            use_bias=False,
            depthwise_initializer=RandomUniform(-bound, bound),
            dtype=self.dtype_policy,
            name="convolution",
        )
        self.convolution.build((None, *(n + 2 * self._padding for n in self.grid_size), channels))
        self.norm = BatchNormalization(
            epsilon=1e-5, momentum=0.9, dtype=self.dtype_policy, name="norm"
        )
        self.norm.build((None, *self._output_grid(), channels))
        self.linear = keras.layers.Dense(
            channels,
            use_bias=self.use_bias,
            kernel_initializer=RandomNormal(stddev=0.02),
            dtype=self.policy_within("linear"),
            name="linear",
        )
        self.linear.build(self.compute_output_shape(input_shape))

    def _output_grid(self) -> tuple[int, int]:
        height, width = (-(-n // self.strides) for n in self.grid_size)
        return height, width

    def _means(self, grid):
        """Return the means of squares of ``strides`` tokens, of fewer at an odd border."""
        side = self.strides
        present = [np.full(math.ceil(size / side), side) for size in self.grid_size]
        for sizes, size in zip(present, self.grid_size, strict=True):
            sizes[-1] -= len(sizes) * side - size
        missing = [side - int(sizes[-1]) for sizes in present]
        if any(missing):
            # By hand: backends disagree about what lies beyond the border in padding="same".
            grid = ops.pad(grid, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
        means = channels_last(ops.average_pool, grid, side, side, padding="valid")
        if any(missing):
            counts = np.outer(*present).reshape(1, len(present[0]), len(present[1]), 1)
            means = means * ops.cast((side**2 / counts).astype("float32"), means.dtype)
        return means

    def call(self, inputs, training=None):
        channels = inputs.shape[-1]
        height, width = self._output_grid()

        def tokens(grid):
            grid = ops.reshape(grid, (-1, height * width, channels))
            return ops.concatenate([inputs[:, :1], grid], axis=1) if self.class_token else grid

        grid = inputs[:, 1:] if self.class_token else inputs
        grid = ops.reshape(grid, (-1, *self.grid_size, channels))
        x = grid
        if self._padding:
            border = (self._padding, self._padding)
            x = ops.pad(x, ((0, 0), border, border, (0, 0)))
        x = self.convolution(x, training=training)
        x = self.linear(tokens(self.norm(x, training=training)))
        if self.shortcut and self.strides > 1:
            grid = self._means(grid)
        return x + tokens(grid) if self.shortcut else x

    def compute_output_shape(self, input_shape):
        height, width = self._output_grid()
        return (input_shape[0], height * width + self.class_token, input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "grid_size": self.grid_size,
            "class_token": self.class_token,
            "strides": self.strides,
            "kernel_size": self.kernel_size,
            "use_bias": self.use_bias,
            "shortcut": self.shortcut,
        }


@keras.saving.register_keras_serializable(package="keras_hybrid")
class ConvolutionalProjectionAttention(CompositeLayer):
    """Self-attention ``softmax(scale · QKᵀ) V`` with convolutional projections, and a linear map.

    CvT, Wu et al. 2021, section 3.2: keys and values come from a strided convolution, so there
    are fewer of them than queries.

    Args:
        num_heads: Number of heads, a divisor of the channels.
        grid_size: (height, width) of the grid whose row-major cells are the tokens.
        class_token: Whether a class token precedes the grid.
        key_strides: Stride of the convolutions of keys and values.
        kernel_size: Of the three convolutions, odd.
        qkv_bias: Whether the linear maps of the three projections have a bias.
        shortcut: Whether the projections are residual (see `ConvolutionalProjection`).
        scale: Factor on QKᵀ. ``None``: channels^-0.5, the whole width's, as in CvT's code.
        attention_dropout: Rate on the attention map, in [0, 1).
        dropout: Rate on the output, in [0, 1).
        remat: Whether training computes the attention map again in the backward pass instead of
            keeping it, which saves memory of (batch, num_heads, queries, keys) for its time. A
            map with dropout is kept.

    Call arguments:
        inputs: Tokens, shape (batch, [1 +] height · width, channels).

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: If ``num_heads`` does not divide the channels, or the number of tokens is not
            that of the grid.
    """

    def __init__(
        self,
        num_heads: int,
        grid_size: tuple[int, int],
        class_token: bool = False,
        key_strides: int = 2,
        kernel_size: int = 3,
        qkv_bias: bool = True,
        shortcut: bool = False,
        scale: float | None = None,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        remat: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"num_heads must be a positive integer, got {num_heads}.")
        self.num_heads = num_heads
        self.grid_size = tuple(grid_size)
        self.class_token = class_token
        self.key_strides = key_strides
        self.kernel_size = kernel_size
        self.qkv_bias = qkv_bias
        self.shortcut = shortcut
        self.scale = scale
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.remat = remat
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide the {channels} channels of the input."
            )
        self._scale = channels**-0.5 if self.scale is None else self.scale
        self.query, self.key, self.value = (
            ConvolutionalProjection(
                self.grid_size,
                class_token=self.class_token,
                strides=strides,
                kernel_size=self.kernel_size,
                use_bias=self.qkv_bias,
                shortcut=self.shortcut,
                dtype=self.dtype_policy,
                name=name,
            )
            for name, strides in (
                ("query", 1),
                ("key", self.key_strides),
                ("value", self.key_strides),
            )
        )
        for projection in (self.query, self.key, self.value):
            projection.build(input_shape)
        self.projection = keras.layers.Dense(
            channels,
            kernel_initializer=RandomNormal(stddev=0.02),
            dtype=self.policy_within("projection"),
            name="projection",
        )
        self.projection.build(input_shape)
        self.attention_dropout_layer = keras.layers.Dropout(
            self.attention_dropout, dtype=self.dtype_policy
        )
        self.dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)

    def _heads(self, projection, inputs, training):
        """Return queries, keys or values, shape (batch, tokens, num_heads, width of a head)."""
        x = projection(inputs, training=training)
        _, tokens, channels = x.shape
        return ops.reshape(x, (-1, tokens, self.num_heads, channels // self.num_heads))

    def attention_scores(self, inputs, training=None):
        """Return the attention map, shape (batch, num_heads, queries, keys), each row summing to 1.

        Args:
            inputs: Tokens, as in the call.
            training: Whether the batch normalisations use the batch's statistics.
        """
        query, key = (self._heads(x, inputs, training) for x in (self.query, self.key))
        return attention_map(query, key, self._scale)

    def call(self, inputs, training=None):
        query, key, value = (
            self._heads(x, inputs, training) for x in (self.query, self.key, self.value)
        )
        dropout = self.attention_dropout_layer
        x = attend(query, key, value, self._scale, None, dropout, training, self.remat)
        x = self.projection(ops.reshape(x, (-1, *inputs.shape[1:])))
        return self.dropout_layer(x, training=training)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "grid_size": self.grid_size,
            "class_token": self.class_token,
            "key_strides": self.key_strides,
            "kernel_size": self.kernel_size,
            "qkv_bias": self.qkv_bias,
            "shortcut": self.shortcut,
            "scale": self.scale,
            "attention_dropout": self.attention_dropout,
            "dropout": self.dropout,
            "remat": self.remat,
        }
