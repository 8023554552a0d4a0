"""Transformer blocks for maps, with convolutions where others have linear layers."""

from collections.abc import Sequence

import keras
from keras import ops

from keras_hybrid.layers.channels_last import Conv2D, DepthwiseConv2D
from keras_hybrid.layers.composite import CompositeLayer
from keras_hybrid.layers.dot_product import attend, attention_map
from keras_hybrid.layers.normalization import BatchNormalization

__all__ = ["FullyConvolutionalTransformer"]

NORMALIZATIONS = ("batch", "layer")


@keras.saving.register_keras_serializable(package="keras_hybrid")
class FullyConvolutionalTransformer(CompositeLayer):
    """A transformer block over a map: convolutional attention, then wide focus.

    With D depthwise and C full 3×3 convolutions, N a norm, each with weights of its own:

    ``z = x + ReLU(C · attention(N(D_q x), N(D_k x), N(D_v x)))``
    ``y = z + GELU(C · Σ_r GELU(C_r · N z))``, where C_r has dilation r.

    The defaults are the block of Tragakis et al. 2022, "The Fully Convolutional Transformer for
    Medical Image Segmentation" (arXiv:2206.00566), as their Keras code has it: each head as wide as
    the map, linear layers around the attention, keys and values of a map of half the size. The
    report on ResNet-FCT (Mensah et al.) takes ``num_heads=8, head_dim=channels // 8,
    key_stride=1, linear=False, convolution=False, dilations=(), dropout=0``: then the attention is
    added as it is, and the focus is one convolution, ``y = z + GELU(C · N z)``.

    Args:
        num_heads: Number of heads.
        head_dim: Width of one head. ``None``: the map's channels.
        key_stride: Stride of the depthwise convolutions of keys and values.
        normalization: ``"layer"`` or ``"batch"``, over the channels.
        linear: Whether biased linear layers follow the norms and the heads.
        convolution: Whether a 3×3 convolution and ReLU follow the attention.
        dilations: Of the parallel convolutions of the wide focus; ``()`` for none.
        dropout: Rate after each convolution of the wide focus, in [0, 1).
        attention_dropout: Rate on the attention map, in [0, 1).
        projection_epsilon: Of the norms of queries, keys and values. ``None``: ``epsilon``.
        epsilon: Of the norm before the wide focus.
        kernel_initializer: Of all convolutions and linear layers.
        remat: Whether training computes the attention map again in the backward pass instead of
            keeping it, which saves memory of (batch, num_heads, queries, keys) for its time. A
            map with dropout is kept.

    Call arguments:
        inputs: Map, shape (batch, height, width, channels), height and width fixed.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: If an argument has no meaning, or ``linear=False`` and ``num_heads · head_dim``
            are not the map's channels.
    """

    def __init__(
        self,
        num_heads: int = 2,
        head_dim: int | None = None,
        key_stride: int = 2,
        normalization: str = "layer",
        linear: bool = True,
        convolution: bool = True,
        dilations: Sequence[int] = (1, 2),
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        projection_epsilon: float | None = 1e-3,
        epsilon: float = 1e-5,
        kernel_initializer="he_normal",
        remat: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"num_heads must be a positive integer, got {num_heads}.")
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization must be one of {NORMALIZATIONS}, got {normalization!r}."
            )
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.key_stride = key_stride
        self.normalization = normalization
        self.linear = linear
        self.convolution = convolution
        self.dilations = tuple(dilations)
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.projection_epsilon = projection_epsilon
        self.epsilon = epsilon
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.remat = remat

    def build(self, input_shape):
        channels = input_shape[-1]
        self._head_dim = self.head_dim or channels
        inner = self.num_heads * self._head_dim
        if not self.linear and inner != channels:
            raise ValueError(
                f"Without linear layers num_heads={self.num_heads} times head_dim="
                f"{self._head_dim} must be the {channels} channels of the map."
            )
        self.depthwise, self.norms, self.dense = [], [], []
        for name, stride in (("query", 1), ("key", self.key_stride), ("value", self.key_stride)):
            convolution = DepthwiseConv2D(
                3,
                strides=stride,
                padding="same",
                data_format="channels_last",
                use_bias=False,
                depthwise_initializer=self._depthwise_initializer(),
                dtype=self.dtype_policy,
                name=f"{name}_depthwise",
            )
            convolution.build(input_shape)
            self.depthwise.append(convolution)
            shape = convolution.compute_output_shape(input_shape)
            epsilon = self.epsilon if self.projection_epsilon is None else self.projection_epsilon
            self.norms.append(self._norm(shape, epsilon, f"{name}_norm"))
            if self.linear:
                self.dense.append(self._dense(inner, channels, name))
        self.output_dense = self._dense(channels, inner, "output") if self.linear else None
        self.output_convolution = (
            self._convolution(input_shape, "output_convolution", "relu")
            if self.convolution
            else None
        )
        self.focus_norm = self._norm(input_shape, self.epsilon, "focus_norm")
        self.branches = [
            self._convolution(input_shape, f"branch{i}", "gelu", dilation)
            for i, dilation in enumerate(self.dilations)
        ]
        self.focus = self._convolution(input_shape, "focus", "gelu")
        self.attention_dropout_layer = keras.layers.Dropout(
            self.attention_dropout, dtype=self.dtype_policy
        )
        self.dropout_layers = [
            keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)
            for _ in range(len(self.branches) + 1)
        ]

    def _initializer(self):
        return self.kernel_initializer.clone()

    def _depthwise_initializer(self):
        initializer = self._initializer()
        is_scaled = isinstance(initializer, keras.initializers.VarianceScaling)
        if is_scaled and initializer.mode == "fan_in":
            # Keras takes all channels for inputs of a depthwise kernel, of which each sees one.
            initializer.mode = "fan_out"
        return initializer

    def _norm(self, shape, epsilon, name):
        options = {"epsilon": epsilon, "dtype": self.dtype_policy, "name": name}
        if self.normalization == "batch":
            layer = BatchNormalization(momentum=0.9, **options)
        else:
            layer = keras.layers.LayerNormalization(**options)
        layer.build(shape)
        return layer

    def _dense(self, units, channels, name):
        layer = keras.layers.Dense(
            units,
            kernel_initializer=self._initializer(),
            dtype=self.policy_within(f"{name}_dense"),
            name=f"{name}_dense",
        )
        layer.build((None, None, channels))
        return layer

    def _convolution(self, shape, name, activation, dilation=1):
        # By name, Keras's GELU is the exact (erf) form.
        layer = Conv2D(
            shape[-1],
            3,
            padding="same",
            data_format="channels_last",
            dilation_rate=dilation,
            activation=activation,
            kernel_initializer=self._initializer(),
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build(shape)
        return layer

    def _heads(self, inputs, index, training):
        """Return queries (0), keys (1) or values (2), shape (batch, tokens, heads, head_dim)."""
        x = self.norms[index](self.depthwise[index](inputs), training=training)
        _, height, width, channels = x.shape
        x = ops.reshape(x, (-1, height * width, channels))
        if self.linear:
            x = self.dense[index](x)
        return ops.reshape(x, (-1, height * width, self.num_heads, self._head_dim))

    def attention_scores(self, inputs, training=False):
        """Return the attention map, shape (batch, num_heads, queries, keys), each row summing to 1.

        Args:
            inputs: Map, as in the call; cells are numbered row by row.
            training: Whether batch normalisation takes the batch's own statistics.
        """
        query, key = (self._heads(inputs, index, training) for index in (0, 1))
        return attention_map(query, key, self._head_dim**-0.5)

    def call(self, inputs, training=False):
        _, height, width, channels = inputs.shape
        query, key, value = (self._heads(inputs, index, training) for index in range(3))
        dropout, scale = self.attention_dropout_layer, self._head_dim**-0.5
        x = attend(query, key, value, scale, None, dropout, training, self.remat)
        x = ops.reshape(x, (-1, height * width, self.num_heads * self._head_dim))
        if self.linear:
            x = self.output_dense(x)
        x = ops.reshape(x, (-1, height, width, channels))
        if self.convolution:
            x = self.output_convolution(x)
        x = inputs + x
        focus = self.focus_norm(x, training=training)
        if self.branches:
            focus = sum(
                dropout(branch(focus), training=training)
                for branch, dropout in zip(self.branches, self.dropout_layers, strict=False)
            )
        return x + self.dropout_layers[-1](self.focus(focus), training=training)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "key_stride": self.key_stride,
            "normalization": self.normalization,
            "linear": self.linear,
            "convolution": self.convolution,
            "dilations": self.dilations,
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "projection_epsilon": self.projection_epsilon,
            "epsilon": self.epsilon,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "remat": self.remat,
        }
