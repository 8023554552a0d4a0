"""Grad-CAM: which parts of an image speak for a class.

Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization" (ICCV), eqs. 1 and 2. For transformers the tokens on their grid are the map.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_hybrid.explain.graph import ancestors, is_attention, parents_of_calls
from keras_hybrid.explain.grid import has_class_token, on_grid, token_grid
from keras_hybrid.explain.interception import float_batches, intercepted

__all__ = ["default_layer", "default_layers", "grad_cam"]

# Float16 gradients below 6e-8 vanish. The map is normalised, so a factor on the score is free.
_HALF_PRECISION_SCALE = 1024.0


def grad_cam(
    model: keras.Model,
    images: Any,
    class_index: int | Sequence[int] | np.ndarray | None = None,
    layer: str | None = None,
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """Return a heat map for each image: what in it raises the score of a class.

    ``ReLU(Σ_k α_k A_k)``, where A_k is channel k of ``layer``'s output and α_k the mean over
    places of the gradient of the class's score with respect to it; enlarged to the image
    (bilinear) and divided by its maximum.

    Args:
        model: A Functional or Sequential model from images to scores (batch, classes). The
            gradient is that of the model's output, a cosine or a logit; where it ends in a softmax
            or sigmoid, that of what goes into it, as in the paper (behind it the gradient of a
            class that is certain would be 0).
        images: Array (batch, height, width, channels), as the model takes them.
        class_index: The class to explain: one for all images, or one for each, (batch,). ``None``:
            the class with the highest score of each image.
        layer: Name of the layer whose output is explained: a map (batch, rows, columns, channels)
            or tokens (batch, tokens, channels) of a grid with the image's proportions, with or
            without a class token before them. ``None``: `default_layer`.
        batch_size: Images that run through the model at a time.

    Returns:
        float32 (batch, height, width) in [0, 1]. The largest value of each map is 1, except where
        nothing speaks for the class: such a map is 0 throughout.

    Raises:
        ValueError: If the model's graph is not known, its output is not (batch, classes), there is
            no such layer or its output is neither a map nor a grid, or a class is out of range.
    """
    _check_model(model)
    images = np.asarray(images)
    if images.ndim != 4:
        raise ValueError(
            f"images must have shape (batch, height, width, channels), got {images.shape}."
        )
    target = _spatial_layer(model, layer or default_layer(model), images.shape[1:3])
    classes = _class_per_image(class_index, len(images), model.outputs[0].shape[-1])
    maps = [
        _explain(model, batch, None if classes is None else classes[rows], target)
        for rows, batch in float_batches(images, batch_size)
    ]
    return np.concatenate(maps)


def default_layer(model: keras.Model) -> str:
    """Return the name of the layer that `grad_cam` explains if it is not told which.

    It is the one of `default_layers`, if there is one: then everything that speaks for a class
    passes through it. Where branches reach the score side by side, a map of one of them would pass
    for the whole, so none is chosen.

    Args:
        model: A Functional or Sequential model.

    Raises:
        ValueError: If the model's graph is not known, no layer puts out a map, or several layers
            share what speaks for a class; the message names them.
    """
    layers = default_layers(model)
    if len(layers) > 1:
        raise ValueError(
            f"In model {model.name!r} the evidence comes to the score side by side: no layer with "
            f"a map has all of it behind it. Give layer= one of {', '.join(layers)}."
        )
    return layers[0]


def default_layers(model: keras.Model) -> list[str]:
    """Return the names of the last layers with a map on the ways from the image to the score.

    Most models have one: the last map, or the last tokens on a grid. Members of an ensemble,
    Conformer's two branches and the modules of ResNet-FCT have one each. In a model that reads its
    class token, what the last block computes for the patches reaches no score, so it is what the
    last attention reads.

    Args:
        model: A Functional or Sequential model.

    Returns:
        Names of layers that `grad_cam` takes, at least one, in the order of ``model.layers``.

    Raises:
        ValueError: If the model's graph is not known or no layer puts out a map.
    """
    _check_model(model)
    size = tuple(model.inputs[0].shape[1:3])
    parents = parents_of_calls(model)
    calls = list(parents)
    operations = [operation for operation, _ in calls]
    read_by_attention = {
        parents[call][0] for call in calls if is_attention(call[0]) and parents[call]
    }

    def leads_class_token(call) -> bool:
        shape = call[0].output.shape
        return len(shape) == 3 and has_class_token(shape[1], size)

    def is_map(call) -> bool:
        operation = call[0]
        return (
            isinstance(operation, keras.layers.Layer)
            and not isinstance(operation, keras.layers.InputLayer)
            and operations.count(operation) == 1
            and _places(operation, size) > 1
            # Of tokens behind a class token it is the attention that brings evidence to the score.
            and (call in read_by_attention or not leads_class_token(call))
        )

    maps = {call for call in calls if is_map(call)}
    last = maps & ancestors(parents, calls[-1], stop=maps)
    # The class token's residual connections lead to every block: its last attention stands for all.
    for call in [call for call in last if leads_class_token(call)]:
        last -= ancestors(parents, call)
    # What is made of another of them alone (a projection beside a pooling) shows nothing more.
    for call in sorted(last, key=calls.index, reverse=True):
        others = last - {call}
        behind = ancestors(parents, call, stop=others)
        if not any(isinstance(operation, keras.layers.InputLayer) for operation, _ in behind):
            last = others
    if not last:
        raise ValueError(
            f"Model {model.name!r} has no layer whose output is a map (batch, rows, columns, "
            "channels) or a grid of tokens (batch, tokens, channels)."
        )
    # A map that is only reshaped has a name of its own, which people know.
    chosen = {
        parents[call][0][0]
        if isinstance(call[0], keras.layers.Reshape) and parents[call][0] in maps
        else call[0]
        for call in last
    }
    return [layer.name for layer in model.layers if layer in chosen]


def _explain(model: keras.Model, images, classes: np.ndarray | None, layer) -> np.ndarray:
    """Return the maps of one batch, float32 (batch, height, width)."""
    seen = []

    def record(call, *args, **kwargs):
        seen.append(call(*args, **kwargs))
        return seen[-1]

    behind = _without_activation(model)
    with intercepted(behind | {layer: record}):
        scores = model(images, training=False)
    if len(seen) != 1:
        raise ValueError(
            f"Layer {layer.name!r} runs {len(seen)} times in model {model.name!r}; choose one that "
            "runs once."
        )
    activations = seen[0]
    if classes is None:
        classes = ops.convert_to_numpy(scores).argmax(axis=-1)
    classes = ops.convert_to_tensor(classes, "int32")
    chosen = ops.one_hot(classes, scores.shape[-1], dtype="float32")
    half = keras.backend.standardize_dtype(activations.dtype) == "float16"

    def score(activations):
        given = {layer: lambda call, *args, **kwargs: activations}
        with intercepted(behind | given):
            outputs = ops.cast(model(images, training=False), "float32")
        return ops.sum(outputs * chosen) * (_HALF_PRECISION_SCALE if half else 1.0)

    gradient = ops.convert_to_numpy(_gradient(score, activations)).astype("float32")
    activations = ops.convert_to_numpy(activations).astype("float32")
    height, width = images.shape[1:3]
    activations = on_grid(activations, (height, width))
    alpha = on_grid(gradient, (height, width)).mean(axis=(1, 2), keepdims=True)  # eq. 1
    cam = np.maximum((alpha * activations).sum(axis=-1, keepdims=True), 0)  # eq. 2
    # Twice: the first keeps tiny gradients away from the smallest floats, the second follows
    # interpolation, which can lower the peak.
    cam = _divide_by_maximum(cam)
    cam = ops.image.resize(cam, (height, width), "bilinear", data_format="channels_last")
    return _divide_by_maximum(ops.convert_to_numpy(cam))[..., 0].astype("float32")


def _without_activation(model: keras.Model) -> dict[keras.layers.Layer, Callable[..., Any]]:
    """Return what to run in place of last layers that end in a softmax or sigmoid."""
    return _linear(model.outputs[0]) if getattr(model, "outputs", None) else {}


def _linear(output) -> dict[keras.layers.Layer, Callable[..., Any]]:
    layer, _, index = output._keras_history
    if isinstance(layer, keras.Model) and getattr(layer, "outputs", None):
        return _linear(layer.outputs[index])
    if isinstance(layer, keras.layers.Average):  # an ensemble's
        return {key: run for tensor in layer.input for key, run in _linear(tensor).items()}
    if isinstance(layer, keras.layers.Softmax):
        return {layer: lambda call, x, *args, **kwargs: x}
    squashing = (keras.activations.softmax, keras.activations.sigmoid)
    if getattr(layer, "activation", None) not in squashing:
        return {}

    def linear(call, *args, **kwargs):
        former, layer.activation = layer.activation, keras.activations.linear
        try:
            return call(*args, **kwargs)
        finally:
            layer.activation = former

    return {layer: linear}


def _divide_by_maximum(cam: np.ndarray) -> np.ndarray:
    maximum = cam.max(axis=(1, 2, 3), keepdims=True)
    return np.clip(cam / np.where(maximum > 0, maximum, 1), 0, 1)


def _gradient(function: Callable[[Any], Any], tensor):
    """Return the gradient of a scalar function at ``tensor``, on the backend in use."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensor)
            value = function(tensor)
        return tape.gradient(value, tensor, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    if backend == "jax":
        import jax

        return jax.grad(function)(tensor)
    if backend == "torch":
        import torch

        with torch.enable_grad():
            tensor = tensor.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(function(tensor), tensor, materialize_grads=True)
        return gradient
    raise ValueError(f"Grad-CAM needs gradients, which the backend {backend!r} does not compute.")


# The graph


def _check_model(model: keras.Model) -> None:
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise ValueError(
            f"Grad-CAM takes built Functional and Sequential models; model {model.name!r} has no "
            "symbolic inputs."
        )
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise ValueError(
            "Grad-CAM takes models with one image input (batch, height, width, channels), got "
            f"inputs of the shapes {[tuple(tensor.shape) for tensor in inputs]}."
        )
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise ValueError(
            "Grad-CAM takes models with one output (batch, classes), got outputs of the shapes "
            f"{[tuple(tensor.shape) for tensor in outputs]}."
        )


def _spatial_layer(model: keras.Model, name: str, size: tuple[int, int]) -> keras.layers.Layer:
    layers = {layer.name: layer for layer in model.layers}
    if name not in layers:
        usable = [n for n, candidate in layers.items() if _places(candidate, size)]
        close = difflib.get_close_matches(name, usable, n=5, cutoff=0.5) or usable[-5:]
        raise ValueError(
            f"Model {model.name!r} has no layer named {name!r}. Among its {len(usable)} layers "
            f"with a map or a grid of tokens are {', '.join(close)}."
        )
    if not _places(layers[name], size):
        shape = getattr(getattr(layers[name], "output", None), "shape", None)
        raise ValueError(
            f"layer={name!r} puts out {shape}: neither a map (batch, rows, columns, channels) nor "
            f"tokens (batch, tokens, channels) on a grid with the proportions of {size[0]}x"
            f"{size[1]} images."
        )
    return layers[name]


def _places(layer: keras.layers.Layer, size: tuple[int | None, int | None]) -> float:
    """Return how many places a layer's output has on the image; 0 if it is no map, inf if open."""
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):  # several outputs, or not a part of a graph
        return 0
    if len(shape) == 4:
        return math.inf if None in shape[1:3] else shape[1] * shape[2]
    if len(shape) == 3 and shape[1] is not None and None not in size:
        grid = token_grid(shape[1], size) or token_grid(shape[1] - 1, size)
        return grid[0] * grid[1] if grid else 0
    return 0


def _class_per_image(class_index, count: int, classes: int) -> np.ndarray | None:
    if class_index is None:
        return None
    indices = np.asarray(class_index)
    if indices.ndim == 0:
        indices = np.full(count, indices)
    if indices.shape != (count,) or indices.dtype.kind not in "iu":
        raise ValueError(
            f"class_index must be None, an integer or {count} integers, one for each image; got "
            f"{class_index!r}."
        )
    if indices.min() < 0 or indices.max() >= classes:
        raise ValueError(f"class_index must be in [0, {classes}), got {class_index!r}.")
    return indices
