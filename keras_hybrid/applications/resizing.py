"""Trained weights in a model of another input size."""

import os
import warnings

import keras
import numpy as np
from keras import ops

from keras_hybrid.applications.botnet import BottleneckAttention
from keras_hybrid.layers.position import LearnedPositionEmbedding, RelativePositionBias

__all__ = ["transfer_weights"]


def transfer_weights(
    source: keras.Model | str | os.PathLike, target: keras.Model, skip_mismatch: bool = False
) -> list[str]:
    """Copy weights, layer by layer, to a model of the same architecture and another input size.

    What was learnt for each place is interpolated, bicubically and with antialiasing where it
    shrinks, as timm's ``resample_abs_pos_embed`` does it: position embeddings on the grid of their
    tokens, a class token's kept as it is (Dosovitskiy et al. 2021, section 3.2), and tables of
    relative positions over the offsets (as ``load_pretrained`` of Swin's authors, which does not
    antialias), BoTNet's axis by axis. Everything else is copied, as long as the shapes agree.
    Training a little at the new size, as both papers do, makes up for what interpolation loses.

    Layers are matched by name. Layers that only the source has are left out, so that a backbone
    can be filled from a classifier. A flattened map or joined tokens are told by their number
    alone: turning the image, say from 112 × 96 to 96 × 112, is not noticed there. How images are
    normalised is the target's own; it must be as in the source, where both do it.

    Args:
        source: A built model, or the path of a ``.keras`` file.
        target: A built model; its weights are overwritten.
        skip_mismatch: Whether layers that cannot be transferred keep their weights, with a
            warning, as in `keras.Model.load_weights`, and a target that normalises images
            differently gets the weights, with a warning.

    Returns:
        Names of the layers that keep their weights; none without ``skip_mismatch``.

    Raises:
        ValueError: If the weights of a layer depend on the input size in another way (a flattened
            map, tokens side by side, a convolution as large as the map), belong to another number
            of classes, or are not in the source; the message names the layers. Also if source and
            target normalise images differently. ``target`` is then unchanged.
    """
    if not isinstance(source, keras.Model):
        source = keras.saving.load_model(source, compile=False)
    origins = {layer.name: layer for layer in source.layers}
    _check_normalisation(origins, source, target, skip_mismatch)
    transferred, mismatches = [], []
    for layer in target.layers:
        if not layer.weights:
            continue
        values = _values(source, origins.get(layer.name), target, layer)
        if values is None:
            mismatches.append(layer.name)
        else:
            transferred.append((layer, values))
    if mismatches:
        message = (
            f"These layers of model {target.name!r} have no weights in the source, or weights of "
            f"other shapes that cannot be interpolated to another size: {', '.join(mismatches)}."
        )
        if not skip_mismatch:
            raise ValueError(f"{message} Give skip_mismatch=True to leave them as they are.")
        warnings.warn(f"{message} They are left as they are.", stacklevel=2)
    for layer, values in transferred:
        layer.set_weights(values)
    return mismatches


def _check_normalisation(
    origins: dict[str, keras.layers.Layer], source, target, skip_mismatch: bool
) -> None:
    """Raise ValueError, or warn, if both models normalise images, but differently."""
    for layer in target.layers:
        # In a fused model, the member's name comes before the layers' names.
        if not (isinstance(layer, keras.layers.Rescaling) and layer.name.endswith("preprocessing")):
            continue
        theirs = origins.get(layer.name)
        if not isinstance(theirs, keras.layers.Rescaling):
            continue
        if _equal(layer.scale, theirs.scale) and _equal(layer.offset, theirs.offset):
            continue
        message = (
            f"Layer {layer.name!r} of model {target.name!r} normalises images by "
            f"{_statistics(layer)}, but the weights of the source {source.name!r} are for "
            f"{_statistics(theirs)}."
        )
        if not skip_mismatch:
            raise ValueError(
                f"{message} Build the target with these, if its builder has the keywords, or with "
                "the source's keras_trunk; or give skip_mismatch=True to copy the weights as is."
            )
        warnings.warn(f"{message} They are copied as they are.", stacklevel=3)


def _equal(ours, theirs) -> bool:
    """Whether two numbers, or rows of one for each channel, are the same."""
    sizes = {np.size(ours), np.size(theirs)} - {1}
    return len(sizes) <= 1 and np.allclose(ours, theirs)


def _statistics(layer: keras.layers.Rescaling) -> str:
    """Say what (x − mean) / std a layer computes as x · scale + offset."""
    std = 1 / np.asarray(layer.scale)
    mean = -np.asarray(layer.offset) * std
    return f"pixel_mean={np.round(mean, 3).tolist()} and pixel_std={np.round(std, 3).tolist()}"


def _values(source, origin, target, layer) -> list[np.ndarray] | None:
    """Return what ``layer`` gets from its origin, or None if they do not fit."""
    theirs = [] if origin is None else origin.weights
    if [variable.name for variable in theirs] != [variable.name for variable in layer.weights]:
        return None
    values = []
    for old, new in zip(theirs, layer.weights, strict=True):
        is_double = keras.backend.standardize_dtype(old.dtype) == "float64"
        value = ops.convert_to_numpy(old if is_double else ops.cast(old, "float32"))
        grids = _grid(source, origin, old), _grid(target, layer, new)
        if None not in grids and grids[0] != grids[1] and old.shape[-1] == new.shape[-1]:
            value = _resized(value, *grids)
        if value.shape != tuple(new.shape):
            return None
        values.append(value)
    return values


def _grid(model: keras.Model, layer: keras.layers.Layer, variable) -> tuple[int, int] | None:
    """Return (rows, columns) of what a table is learnt for, or None if it is no table."""
    if isinstance(layer, LearnedPositionEmbedding):
        # In a fused model, the member's name comes before the layers' names.
        name = f"{layer.name.removesuffix('position_embedding')}tokens"
        grids = [tuple(x.input.shape[1:-1]) for x in model.layers if x.name == name]
        return grids[0] if grids and len(grids[0]) == 2 else None
    if isinstance(layer, RelativePositionBias):
        height, width = layer.grid_size
        return (2 * height - 1, 2 * width - 1)
    if isinstance(layer, BottleneckAttention) and variable.name.endswith("_table"):
        return (variable.shape[0], 1)
    return None


def _resized(table: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """Interpolate a table ([1,] tokens + rows · columns, channels); the tokens stay in front."""
    *_, length, channels = table.shape
    before, cells = np.split(table, [length - old[0] * old[1]], axis=-2)
    cells = ops.image.resize(
        cells.reshape(1, *old, channels),
        new,
        interpolation="bicubic",
        antialias=True,
        data_format="channels_last",
    )
    cells = ops.convert_to_numpy(cells).reshape(*before.shape[:-2], -1, channels)
    return np.concatenate([before, cells], axis=-2)
