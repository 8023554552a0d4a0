"""Optimizers that Keras has not: Muon for networks that have convolutions, too."""

import re

import keras
from keras import ops

__all__ = ["Muon"]

IMAGE_CHANNELS = 3


@keras.saving.register_keras_serializable(package="keras_hybrid")
class Muon(keras.optimizers.Muon):
    """Muon that also learns the kernels of two-dimensional convolutions.

    Muon replaces the update of a matrix by the nearest orthogonal one. `keras.optimizers.Muon` does
    so for matrices alone and leaves everything else to AdamW. In a hybrid of convolutions and
    attention that leaves the convolutions behind; here a kernel (height, width, input channels,
    filters) counts as the matrix (height · width · input channels, filters), as in the examples of
    Muon's author (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    AdamW still learns

    - whatever is not named ``kernel``: biases, norms, tokens, tables of positions, class centres;
    - kernels of at most 3 input channels, which read the image itself (Muon's author keeps the
      first layer out) or one group of a grouped convolution, and kernels of depthwise convolutions
      with a ``depth_multiplier`` of 1, which are no matrices (others look like a convolution's:
      name them in ``exclude_layers``);
    - kernels of other ranks, such as those of one-dimensional convolutions and of
      `keras.layers.MultiHeadAttention`;
    - what ``exclude_layers`` names;
    - with Keras's default ``exclude_embeddings=True`` whatever has "embedding" in its path. Keras
      means tables, but in this zoo kernels have such names, too: the projection of patches, or that
      of a face to its embedding. ``False`` gives these to Muon.

    Args:
        learning_rate: Rate of the orthogonal updates, whose root mean square entry is then
            ``rms_rate`` times it; see `keras.optimizers.Muon`.
        exclude_layers: Regular expressions; variables in whose path one is found are AdamW's.
        **kwargs: As `keras.optimizers.Muon` takes them.

    Raises:
        ValueError: If ``exclude_layers`` is a string.

    Example:
        As the recipes in ``training/`` have it:

        >>> exclude = ["predictions", "pooling", "position"]
        >>> optimizer = Muon(5e-3, exclude_layers=exclude, exclude_embeddings=False)
        >>> model.compile(optimizer, loss=CosFace())
    """

    def __init__(self, learning_rate=0.001, exclude_layers=None, **kwargs):
        if isinstance(exclude_layers, str):  # whose letters would each be a pattern
            raise ValueError(
                "exclude_layers must be a list of regular expressions, got the string "
                f"{exclude_layers!r}; write [{exclude_layers!r}]."
            )
        super().__init__(learning_rate=learning_rate, exclude_layers=exclude_layers, **kwargs)

    def _should_use_adamw(self, variable):
        if variable.name != "kernel":
            return True
        if len(variable.shape) != 4:
            return super()._should_use_adamw(variable)
        channels, filters = variable.shape[-2:]
        if channels <= IMAGE_CHANNELS or filters == 1:
            return True
        embeddings = ["(?i)embedding"] if self.exclude_embeddings else []
        return any(re.search(part, variable.path) for part in [*self.exclude_layers, *embeddings])

    def zeropower_via_newtonschulz5(self, x, steps: int):
        shape = ops.shape(x)
        return ops.reshape(super().zeropower_via_newtonschulz5(_matrix(x), steps), shape)

    def lr_adjust(self, x):
        shape = ops.shape(x)
        return ops.reshape(super().lr_adjust(_matrix(x)), shape)


def _matrix(x):
    """A kernel (height, width, input, output) or a matrix, with its outputs as columns."""
    return ops.reshape(x, (-1, x.shape[-1]))
