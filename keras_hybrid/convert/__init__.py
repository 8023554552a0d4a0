"""Other people's weights: checkpoints of the original PyTorch implementations.

:func:`load_torch_weights` reads a checkpoint with the original implementation's own parameter names
into a model of this package. One module for each family says which tensor goes where.
"""

from keras_hybrid.convert.loading import load_torch_weights
from keras_hybrid.convert.reading import read_torch_weights

__all__ = ["load_torch_weights", "read_torch_weights"]
