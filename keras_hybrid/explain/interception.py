"""Standing between a layer and the rest of its model while the model runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

__all__ = ["float_batches", "intercepted"]


@contextlib.contextmanager
def intercepted(
    layers: dict[keras.layers.Layer, Callable[..., Any]],
) -> Iterator[None]:
    """Within this context, run a function in place of each layer's ``call``.

    It works for whatever way the model reaches the layer: in a functional graph, in a model within
    the model, in a subclassed model. The model must run eagerly (``model(x)``, not a compiled
    ``predict``), and in no other thread meanwhile.

    Args:
        layers: Layer → function of the layer's original ``call`` and of the call's arguments.
    """

    def replacement(layer, function):
        original = layer.call
        return lambda *args, **kwargs: function(original, *args, **kwargs)

    # Past Keras's own attribute tracking, which has no business with a passing guest.
    replacements = {layer: replacement(layer, function) for layer, function in layers.items()}
    former = {layer: vars(layer)["call"] for layer in layers if "call" in vars(layer)}
    try:
        for layer, function in replacements.items():
            vars(layer)["call"] = function
        yield
    finally:
        for layer in replacements:
            if layer in former:
                vars(layer)["call"] = former[layer]
            else:
                vars(layer).pop("call", None)


def float_batches(images: Any, batch_size: int) -> Iterator[tuple[slice, Any]]:
    """Yield (rows, float32 tensor of the backend) for each batch of images.

    Args:
        images: Array (batch, height, width, channels), not empty.
        batch_size: Images at a time, at least 1.

    Raises:
        ValueError: If the shape or the batch size is not as said.
    """
    images = np.asarray(images)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(
            "images must have shape (batch, height, width, channels) with a batch of at least 1, "
            f"got {images.shape}."
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer, got {batch_size!r}.")
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        yield rows, keras.ops.convert_to_tensor(images[rows].astype("float32"))
