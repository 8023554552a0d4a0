"""Attention logits that come from convolutional features."""

import keras
from keras import ops

from keras_hybrid.initializers import VarianceScaling
from keras_hybrid.layers.composite import CompositeLayer
from keras_hybrid.layers.dot_product import number_of_tokens

__all__ = ["ConvolutionalAttention"]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class ConvolutionalAttention(CompositeLayer):
    """Attention logits from convolutional features: ``C = Q Kᵀ / √head_dim``, without softmax.

    FaceRec, section 3, "Conv_Attention". The logits are added to those of a transformer's layers.

    Args:
        num_heads: Number of heads.
        head_dim: Width of one head. ``None``: channels / num_heads, the paper's.

    Call arguments:
        inputs: One vector for each token, shape (batch, tokens, channels).

    Returns:
        Logits of shape (batch, num_heads, tokens, tokens).

    Raises:
        ValueError: If ``num_heads`` does not divide the channels and ``head_dim`` is not given.
    """

    def __init__(self, num_heads: int, head_dim: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"num_heads must be a positive integer, got {num_heads}.")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def build(self, input_shape):
        if self.head_dim is None and input_shape[-1] % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide the {input_shape[-1]} channels of "
                "the convolutional features; choose a divisor or give head_dim."
            )
        self._head_dim = self.head_dim or input_shape[-1] // self.num_heads
        self.query, self.key = (
            keras.layers.Dense(
                self.num_heads * self._head_dim,
                kernel_initializer=VarianceScaling(1.0, "fan_avg", "uniform"),
                dtype=self.policy_within(name),
                name=name,
            )
            for name in ("query", "key")
        )
        self.query.build(input_shape)
        self.key.build(input_shape)

    def call(self, inputs):
        def split_heads(x):
            x = ops.reshape(x, (-1, number_of_tokens(inputs), self.num_heads, self._head_dim))
            return ops.transpose(x, (0, 2, 1, 3))

        query = split_heads(self.query(inputs) * self._head_dim**-0.5)
        key = split_heads(self.key(inputs))
        return ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_heads, input_shape[1], input_shape[1])

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "head_dim": self.head_dim}
