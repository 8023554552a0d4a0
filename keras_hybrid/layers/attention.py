"""Multi-head self-attention over tokens, with additive logits."""

import keras
from keras import ops

from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.composite import CompositeLayer
from keras_hybrid.layers.dot_product import attend, attention_map, number_of_tokens

__all__ = ["MultiHeadSelfAttention"]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class MultiHeadSelfAttention(CompositeLayer):
    """Softmax self-attention with a fused query-key-value projection.

    ``softmax(scale · QKᵀ + attention_bias) V``, as in Vaswani et al. 2017, eq. 1. It differs from
    ``keras.layers.MultiHeadAttention`` in what hybrids need: one product for Q, K and V, a free
    ``scale`` (several papers divide by the model width, not the head width), and
    ``attention_bias``: logits that something else computed, a convolutional branch, a relative
    position table or key points.

    Args:
        num_heads: Number of heads.
        head_dim: Width of one head. ``None``: channels / num_heads.
        qkv_bias: Whether the fused projection has a bias.
        output_bias: Whether the closing projection has a bias.
        scale: Factor on QKᵀ. ``None``: head_dim^-0.5.
        attention_dropout: Rate on the attention map, in [0, 1).
        dropout: Rate on the output, in [0, 1).
        kernel_initializer: For both projections. ``None``: normal with standard deviation
            0.02, the vision transformers' own.
        output_dim: Width of the output. ``None``: that of the input.
        bias_initializer: For both biases.
        remat: Whether training computes the attention map again in the backward pass instead of
            keeping it, which saves memory of (batch, num_heads, tokens, tokens) for its time. A
            map with dropout is kept.

    Call arguments:
        inputs: Tokens, shape (batch, tokens, channels).
        attention_bias: Optional logits, broadcastable to (batch, num_heads, tokens, tokens), or
            (n, num_heads, tokens, tokens) for a batch of groups of n, as the windows of an image:
            each member of a group has logits of its own.

    Returns:
        Tensor of shape (batch, tokens, output_dim).

    Raises:
        ValueError: If ``num_heads`` does not divide the channels and ``head_dim`` is not given.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        output_bias: bool = True,
        scale: float | None = None,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        kernel_initializer=None,
        output_dim: int | None = None,
        bias_initializer="zeros",
        remat: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"num_heads must be a positive integer, got {num_heads}.")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.output_dim = output_dim
        self.qkv_bias = qkv_bias
        self.output_bias = output_bias
        self.scale = scale
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or RandomNormal(stddev=0.02)
        )
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.remat = remat
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def build(self, inputs_shape, attention_bias_shape=None):
        channels = inputs_shape[-1]
        if self.head_dim is None and channels % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide the {channels} channels of the input; "
                "choose a divisor or give head_dim."
            )
        self._head_dim = self.head_dim or channels // self.num_heads
        self._scale = self._head_dim**-0.5 if self.scale is None else self.scale
        inner = self.num_heads * self._head_dim
        self._build_query_key_value(inputs_shape, inner)
        self.projection = keras.layers.Dense(
            self.output_dim or channels,
            use_bias=self.output_bias,
            kernel_initializer=self.kernel_initializer.clone(),  # draws of its own
            bias_initializer=self.bias_initializer.clone(),
            dtype=self.policy_within("projection"),
            name="projection",
        )
        self.projection.build((*inputs_shape[:-1], inner))
        self.attention_dropout_layer = keras.layers.Dropout(
            self.attention_dropout, dtype=self.dtype_policy
        )
        self.dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)

    def _build_query_key_value(self, inputs_shape, inner):
        self.qkv = keras.layers.Dense(
            3 * inner,
            use_bias=self.qkv_bias,
            kernel_initializer=self.kernel_initializer.clone(),  # draws of its own
            bias_initializer=self.bias_initializer.clone(),
            dtype=self.policy_within("qkv"),
            name="qkv",
        )
        self.qkv.build(inputs_shape)

    def _query_key_value(self, inputs):
        return ops.split(self.qkv(inputs), 3, axis=-1)

    def _heads(self, inputs):
        """Return queries, keys and values, each of shape (batch, tokens, num_heads, head_dim)."""
        shape = (-1, number_of_tokens(inputs), self.num_heads, self._head_dim)
        return [ops.reshape(x, shape) for x in self._query_key_value(inputs)]

    def attention_scores(self, inputs, attention_bias=None):
        """Return the attention map, shape (batch, num_heads, queries, keys), each row summing to 1.

        Args:
            inputs: Tokens, shape (batch, tokens, channels).
            attention_bias: Optional logits, as in the call.
        """
        query, key, _ = self._heads(inputs)
        scores = attention_map(query, key, self._scale, attention_bias)
        mix = self._mix()
        return scores if mix is None else mix[0](scores, *mix[1])

    def _mix(self):
        """What else a subclass makes the map of; see ``attend``."""
        return None

    def call(self, inputs, attention_bias=None, training=None):
        x = attend(
            *self._heads(inputs),
            self._scale,
            attention_bias,
            self.attention_dropout_layer,
            training,
            self.remat,
            self._mix(),
        )
        x = ops.reshape(x, (-1, number_of_tokens(inputs), self.num_heads * self._head_dim))
        return self.dropout_layer(self.projection(x), training=training)

    def compute_output_shape(self, inputs_shape, attention_bias_shape=None):
        return (*inputs_shape[:-1], self.output_dim or inputs_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "output_dim": self.output_dim,
            "qkv_bias": self.qkv_bias,
            "output_bias": self.output_bias,
            "scale": self.scale,
            "attention_dropout": self.attention_dropout,
            "dropout": self.dropout,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "remat": self.remat,
        }
