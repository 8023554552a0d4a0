"""Feature maps: what builders mark as endpoints, and the model that puts them out."""

import math
from collections.abc import Sequence

import keras

__all__ = ["feature_model"]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class Endpoint(keras.layers.Identity):
    """Marks features for `feature_model`, and computes nothing.

    As a layer of the graph the mark survives saving, and whatever head is on the model.

    Args:
        grid_size: ``None`` for a map (batch, height, width, channels). For tokens (batch, tokens,
            channels): (height, width) of the grid whose row-major cells are the last of them; what
            comes before, a class token, is no part of the map.
    """

    def __init__(self, grid_size: tuple[int, int] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.grid_size = None if grid_size is None else tuple(grid_size)

    def as_map(self):
        """Return what is marked as a Keras tensor (batch, height, width, channels)."""
        x = self.output
        if self.grid_size is None:
            return x
        before = x.shape[1] - math.prod(self.grid_size)
        if before:
            x = keras.layers.Cropping1D(
                (before, 0), dtype=self.dtype_policy, name=f"{self.name}_cells"
            )(x)
        return keras.layers.Reshape(
            (*self.grid_size, x.shape[-1]), dtype=self.dtype_policy, name=f"{self.name}_map"
        )(x)

    def get_config(self):
        return {**super().get_config(), "grid_size": self.grid_size}


def endpoint(x, stride: int, grid_size: Sequence[int] | None = None):
    """Mark features; builders go on with what this returns.

    Args:
        x: A map, or tokens.
        stride: Pixels of the image from a place to the next, where the image's size divides.
        grid_size: Of tokens, as `Endpoint` has it.
    """
    return Endpoint(grid_size, name=f"stride{stride:02d}")(x)


def feature_model(model: keras.Model, endpoints: Sequence[str] | None = None) -> keras.Model:
    """Return image → feature maps of every resolution, sharing ``model``'s weights.

    Convolutional and pyramidal networks have one map for each resolution: the last one before
    each downsampling, and the final one as the head reads it. Where several steps make the tokens
    (FaceRec-small's stem, CCT's tokenizer), what each step hands to the next is a map. Transformers
    of one resolution have one: the normalised tokens after the last block, on their grid, without
    class token. Conformer's maps are those of its convolutional branch, ResNet-FCT's those of its
    residual network. ``list(kh.feature_model(model).output)`` tells the names.

    A map is called by its stride: ``"stride08"`` is ⌈1/8⌉ of the image's height and width (a
    network may round otherwise where the size does not divide). Stages are counted differently from
    family to family, and strides need not be powers of two; but a stride names the same resolution
    everywhere. With two digits names sort from fine to coarse (up to a stride of 99), and
    alphabetical order is the one that Keras gives to dictionaries. In a fused model the member's
    name comes before the stride.

    Args:
        model: A model that one of the builders returned, with any head, also one that was saved
            and loaded or whose layers have been trained further.
        endpoints: Names of the maps to put out; ``None``: all.

    Returns:
        A model whose output is a dictionary from names to maps (batch, height, width, channels),
        in alphabetical order, of the model's compute dtype.

    Raises:
        ValueError: If ``model`` has no endpoints, or none of a name in ``endpoints``.
    """
    marked = {layer.name: layer for layer in model.layers if isinstance(layer, Endpoint)}
    if not marked:
        raise ValueError(
            f"model {model.name!r} has no endpoints; feature_model takes a model that a builder of "
            "keras_hybrid.applications returned."
        )
    names = sorted(marked)
    if endpoints is None:
        endpoints = names
    if isinstance(endpoints, str) or not endpoints or not set(endpoints) <= set(names):
        raise ValueError(f"endpoints must be None or some of {names}, got {endpoints!r}.")
    maps = {name: marked[name].as_map() for name in names if name in endpoints}
    return keras.Model(model.input, maps, name=f"{model.name}_features")
