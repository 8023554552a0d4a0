"""Where a transformer looks: attention maps, their product over the layers, token weights.

Rollout: Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers" (ACL).
"""

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_hybrid.explain.interception import float_batches, intercepted

__all__ = ["attention_maps", "attention_rollout", "token_weights"]


def attention_maps(
    model: keras.Model, images: Any, *, batch_size: int = 32
) -> dict[str, np.ndarray]:
    """Return what every self-attention layer attends to.

    Args:
        model: A model with layers that know their ``attention_scores``, such as
            `keras_hybrid.layers.MultiHeadSelfAttention`, its own or those of models within it.
        images: Array (batch, height, width, channels), as the model takes them.
        batch_size: Images that run through the model at a time.

    Returns:
        Layer name → float32 (batch, heads, queries, keys) in [0, 1], each row summing to 1, in the
        order the layers run. The bias that a layer adds to its logits is in its map; dropout is
        not. A layer of a model within the model is named ``"inner model/layer"``; the second call
        of a layer that is called twice ``"layer:1"``.

    Raises:
        ValueError: If the model has no such layer, or ``images`` not that shape.
    """
    return _observe(model, images, batch_size, "attention_scores")


def attention_rollout(model: keras.Model, images: Any, *, batch_size: int = 32) -> np.ndarray:
    """Return how much of each input token reaches each output token through all layers.

    Each layer's map is averaged over its heads and mixed half and half with the identity, for the
    residual connection; rollout is the product of the layers. The MLPs between are taken to mix
    no tokens.

    Args:
        model: As `attention_maps`; all layers must have the same tokens, as queries and as keys.
        images: Array (batch, height, width, channels), as the model takes them.
        batch_size: Images that run through the model at a time.

    Returns:
        float32 (batch, tokens, tokens): row the output token, column the input token, each row
        summing to 1. Where the model has a class token, ``rollout[:, 0, 1:]`` is its view of the
        patches; where it pools a sequence, weigh the rows with `token_weights`.

    Raises:
        ValueError: If the model has no self-attention layer, layers differ in their number of
            tokens or have fewer keys, or ``images`` has not that shape.
    """
    maps = attention_maps(model, images, batch_size=batch_size)
    shapes = {scores.shape[-2:] for scores in maps.values()}
    if len(shapes) > 1 or any(queries != keys for queries, keys in shapes):
        raise ValueError(
            "Rollout needs the same tokens in all attention layers of the model; it has layers of "
            f"{sorted(shapes)} (queries, keys)."
        )
    rollout = None
    for scores in maps.values():
        mixed = (scores.mean(axis=1) + np.eye(scores.shape[-1], dtype="float32")) / 2
        # Half-precision rows sum to 1 only nearly, and the product would multiply the error.
        mixed /= mixed.sum(axis=-1, keepdims=True)
        rollout = mixed if rollout is None else mixed @ rollout
    return rollout


def token_weights(model: keras.Model, images: Any, *, batch_size: int = 32) -> np.ndarray:
    """Return each token's share in the vector that sequence pooling makes.

    Args:
        model: A model with one `keras_hybrid.layers.SequencePooling` layer.
        images: Array (batch, height, width, channels), as the model takes them.
        batch_size: Images that run through the model at a time.

    Returns:
        float32 (batch, tokens) in [0, 1], each row summing to 1.

    Raises:
        ValueError: If the model has no such layer or more than one, or ``images`` not that shape.
    """
    weights = _observe(model, images, batch_size, "token_weights")
    if len(weights) > 1:
        raise ValueError(
            f"Model {model.name!r} pools more than one sequence: {', '.join(weights)}."
        )
    return next(iter(weights.values()))


def _observe(
    model: keras.Model, images: Any, batch_size: int, method: str
) -> dict[str, np.ndarray]:
    """Run the model and collect ``layer.method(same arguments)`` at each call of such a layer."""
    found = dict(_layers(model, method))
    if not found:
        raise ValueError(f"Model {model.name!r} has no layer with {method}.")
    batches: dict[str, list[np.ndarray]] = {}

    def observe(layer, call, *args, **kwargs):
        wanted = inspect.signature(getattr(layer, method)).parameters
        given = inspect.signature(call).bind(*args, **kwargs).arguments
        seen = getattr(layer, method)(**{name: given[name] for name in wanted if name in given})
        name, count = found[layer], calls.get(layer, 0)
        calls[layer] = count + 1
        batches.setdefault(f"{name}:{count}" if count else name, []).append(
            keras.ops.convert_to_numpy(seen).astype("float32")
        )
        return call(*args, **kwargs)

    with intercepted({layer: functools.partial(observe, layer) for layer in found}):
        for _, batch in float_batches(images, batch_size):
            calls: dict[keras.layers.Layer, int] = {}
            model(batch, training=False)
    return {name: np.concatenate(arrays) for name, arrays in batches.items()}


def _layers(
    model: keras.Model, method: str, prefix: str = ""
) -> Iterator[tuple[keras.layers.Layer, str]]:
    for layer in model.layers:
        if hasattr(layer, method):
            yield layer, f"{prefix}{layer.name}"
        elif isinstance(layer, keras.Model):
            yield from _layers(layer, method, f"{prefix}{layer.name}/")
