"""From tokens to one vector."""

import keras
from keras import ops

from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.composite import CompositeLayer

__all__ = ["SequencePooling"]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class SequencePooling(CompositeLayer):
    """Attention over the tokens with one learned query: ``softmax(x w + b)ᵀ x``.

    Hassani et al. 2021 (Compact Convolutional Transformers), eqs. 4 and 5.

    Args:
        kernel_initializer: For the projection to one scalar. ``None``: normal with
            standard deviation 0.02.

    Call arguments:
        inputs: Tokens, shape (batch, tokens, channels).

    Returns:
        Tensor of shape (batch, channels).
    """

    def __init__(self, kernel_initializer=None, **kwargs):
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or RandomNormal(stddev=0.02)
        )
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def build(self, input_shape):
        self.score = keras.layers.Dense(
            1,
            kernel_initializer=self.kernel_initializer,
            dtype=self.policy_within("score"),
            name="score",
        )
        self.score.build(input_shape)

    def token_weights(self, inputs):
        """Return each token's share, shape (batch, tokens), summing to 1."""
        return ops.softmax(ops.squeeze(self.score(inputs), axis=-1), axis=-1)

    def call(self, inputs):
        weights = ops.expand_dims(self.token_weights(inputs), axis=1)
        return ops.squeeze(ops.matmul(weights, inputs), axis=1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
