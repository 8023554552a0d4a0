"""Regularisation that Keras does not bring."""

import keras
from keras import ops

__all__ = ["DropPath"]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class DropPath(keras.layers.Layer):
    """Drops a residual branch for whole samples (stochastic depth, Huang et al. 2016).

    In training each sample of the batch is zeroed with probability ``rate`` and the others are
    divided by ``1 − rate``; at inference the input passes unchanged.

    Args:
        rate: Probability of dropping, in [0, 1).
        seed: Optional integer for a reproducible draw.

    Raises:
        ValueError: If ``rate`` is outside [0, 1).
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {rate}.")
        self.rate = rate
        self.seed = seed
        if rate:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, inputs, training=False):
        if not training or not self.rate:
            return inputs
        shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        keep = keras.random.uniform(shape, seed=self.seed_generator) >= self.rate
        return inputs * ops.cast(keep, inputs.dtype) / (1.0 - self.rate)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
