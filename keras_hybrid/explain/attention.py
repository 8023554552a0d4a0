"""Where a transformer looks: attention maps, their product over the layers, token weights.

Rollout: Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers" (ACL).
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_hybrid.explain.graph import ancestors, parents_of_calls
from keras_hybrid.explain.interception import float_batches, intercepted
from keras_hybrid.layers.convolutional_attention import ConvolutionalAttention

__all__ = [
    "attention_maps",
    "attention_rollout",
    "convolutional_attention_maps",
    "token_weights",
]


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
        of a layer that is called twice ``"layer:1"``. Attention within windows (Swin) has a map for
        each window: (batch · windows, heads, queries, keys), an image's windows side by side.

    Raises:
        ValueError: If the model has no such layer, or ``images`` not that shape.
    """
    return _seen_by(model, images, batch_size, "attention_scores")


def convolutional_attention_maps(
    model: keras.Model, images: Any, *, batch_size: int = 32
) -> dict[str, dict[str, np.ndarray]]:
    """Return what convolutions and what queries and keys contribute to each attention map.

    A layer that a `keras_hybrid.layers.ConvolutionalAttention` helps attends with ``softmax(G + C +
    P)``: G are the scaled products of its queries and keys, C the convolutional attention's logits,
    P what else is added (FaceRec-small's table of relative positions; FaceRec has none). Each part
    is normalised as the layer normalises their sum: a softmax over the keys, for each head and
    query. No part's row is divided by another's, and a softmax forgets only a constant of each
    row, which the sum's forgets, too. So nothing is lost: the combined map is the *product* of the
    parts' maps with its rows divided by their sums. A part whose rows are even changes nothing, and
    where two parts disagree, the more decided one prevails.

    Args:
        model: FaceRec, FaceRec-small, or another model with such layers.
        images: Array (batch, height, width, channels), as the model takes them.
        batch_size: Images that run through the model at a time.

    Returns:
        Name of the attention layer, as in `attention_maps` → part → float32 (batch, heads, queries,
        keys) in [0, 1], each row summing to 1. The parts are ``"query_key"`` softmax(G),
        ``"convolutional"`` softmax(C), ``"position"`` softmax(P) where there is a P, and
        ``"combined"``, which is `attention_maps`' own. P is what remains of the bias without C, in
        the precision the model computes in.

    Raises:
        ValueError: If no attention layer of the model adds a convolutional attention's logits, or
            ``images`` has not that shape.
    """
    helped = {
        layer: (name, *source)
        for layer, name in _layers(model, "attention_scores")
        if (source := _convolutional_source(layer))
    }
    if not helped:
        raise ValueError(
            f"Model {model.name!r} has no attention layer that a ConvolutionalAttention helps, as "
            "those of FaceRec and FaceRec-small have."
        )
    convolutional = {source for _, source, _ in helped.values()}
    logits: dict[keras.layers.Layer, Any] = {}

    def look(layer, given, output):
        if layer in convolutional:
            logits[layer] = ops.cast(output, "float32")
            return {}
        _, source, is_alone = helped[layer]
        tokens, bias = given["inputs"], given["attention_bias"]
        parts = {
            "query_key": layer.attention_scores(tokens),
            "convolutional": ops.softmax(logits[source], axis=-1),
        }
        if not is_alone:
            rest = ops.cast(bias, "float32") - logits[source]
            parts["position"] = ops.softmax(rest, axis=-1)
        return {**parts, "combined": layer.attention_scores(tokens, attention_bias=bias)}

    names = {layer: name for layer, (name, *_) in helped.items()}
    return _observe(model, images, batch_size, names, look, beside=convolutional)


def attention_rollout(model: keras.Model, images: Any, *, batch_size: int = 32) -> np.ndarray:
    """Return how much of each input token reaches each output token through all layers.

    Each layer's map is averaged over its heads and mixed half and half with the identity, for the
    residual connection; rollout is the product of the layers. What stands between them is taken to
    mix no tokens: so do MLPs, and convolutions do not.

    Args:
        model: As `attention_maps`, with its graph known (Functional or Sequential), if it has more
            than one such layer. All must have the same tokens, as queries and as keys, and each
            must work on what comes from the one before it: the members of an ensemble do not.
        images: Array (batch, height, width, channels), as the model takes them.
        batch_size: Images that run through the model at a time.

    Returns:
        float32 (batch, tokens, tokens): row the output token, column the input token, each row
        summing to 1. Where the model has a class token, ``rollout[:, 0, 1:]`` is its view of the
        patches; where it pools a sequence, weigh the rows with `token_weights`.

    Raises:
        ValueError: If the model has no self-attention layer, layers differ in their number of
            tokens, have fewer keys, attend within windows or run side by side, the graph of a model
            with several is not known, or ``images`` has not that shape.
    """
    maps = attention_maps(model, images, batch_size=batch_size)
    windowed = [name for name, scores in maps.items() if len(scores) != len(images)]
    if windowed:
        raise ValueError(
            "Rollout needs the same tokens in all attention layers of the model; "
            f"{windowed[0]!r} attends within windows."
        )
    shapes = {scores.shape[-2:] for scores in maps.values()}
    if len(shapes) > 1 or any(queries != keys for queries, keys in shapes):
        raise ValueError(
            "Rollout needs the same tokens in all attention layers of the model; it has layers of "
            f"{sorted(shapes)} (queries, keys)."
        )
    if len(maps) > 1:
        _check_one_after_another(model)
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
    weights = _seen_by(model, images, batch_size, "token_weights")
    if len(weights) > 1:
        raise ValueError(
            f"Model {model.name!r} pools more than one sequence: {', '.join(weights)}."
        )
    return next(iter(weights.values()))


def _seen_by(
    model: keras.Model, images: Any, batch_size: int, method: str
) -> dict[str, np.ndarray]:
    """Run the model and collect ``layer.method(same arguments)`` at each call of such a layer."""
    names = dict(_layers(model, method))
    if not names:
        raise ValueError(f"Model {model.name!r} has no layer with {method}.")

    def look(layer, given, output):
        function = getattr(layer, method)
        wanted = inspect.signature(function).parameters
        return function(**{name: given[name] for name in wanted if name in given})

    return _observe(model, images, batch_size, names, look)


def _observe(
    model: keras.Model,
    images: Any,
    batch_size: int,
    names: dict[keras.layers.Layer, str],
    look: Callable[[keras.layers.Layer, dict[str, Any], Any], Any],
    beside: Collection[keras.layers.Layer] = (),
) -> dict[str, Any]:
    """Run the model and collect what ``look(layer, arguments, output)`` returns at each call.

    Args:
        model: The model.
        images: Array (batch, height, width, channels).
        batch_size: Images at a time.
        names: The layers to look at, and what their results are called.
        look: Function that returns a tensor with a batch axis, or a dictionary of such.
        beside: Layers that are looked at without a result.

    Returns:
        Name → float32 NumPy arrays in the structure that ``look`` gave them.
    """
    batches: dict[str, list] = {}

    def observe(layer, call, *args, **kwargs):
        output = call(*args, **kwargs)
        seen = look(layer, inspect.signature(call).bind(*args, **kwargs).arguments, output)
        if layer in names:
            count = calls.get(layer, 0)
            calls[layer] = count + 1
            batches.setdefault(f"{names[layer]}:{count}" if count else names[layer], []).append(
                keras.tree.map_structure(lambda x: ops.convert_to_numpy(x).astype("float32"), seen)
            )
        return output

    with intercepted({layer: functools.partial(observe, layer) for layer in (*names, *beside)}):
        for _, batch in float_batches(images, batch_size):
            calls: dict[keras.layers.Layer, int] = {}
            model(batch, training=False)
    return {
        name: keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *seen)
        for name, seen in batches.items()
    }


def _layers(
    model: keras.Model, method: str, prefix: str = ""
) -> Iterator[tuple[keras.layers.Layer, str]]:
    for layer in model.layers:
        if hasattr(layer, method):
            yield layer, f"{prefix}{layer.name}"
        elif isinstance(layer, keras.Model):
            yield from _layers(layer, method, f"{prefix}{layer.name}/")


def _check_one_after_another(model: keras.Model) -> None:
    """Raise ValueError unless each attention layer works on what comes from the one before it."""
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise ValueError(
            "Rollout needs to know which attention layer reads which; the graph of model "
            f"{model.name!r} is not known."
        )
    parents = parents_of_calls(model)
    inner = {
        layer
        for layer in model.layers
        if isinstance(layer, keras.Model) and any(_layers(layer, "attention_scores"))
    }
    calls = [call for call in parents if hasattr(call[0], "attention_scores") or call[0] in inner]
    for former, latter in itertools.pairwise(calls):
        if former not in ancestors(parents, latter):
            raise ValueError(
                "Rollout needs attention layers that work one after another; in model "
                f"{model.name!r} nothing leads from {former[0].name!r} to {latter[0].name!r}. "
                "`attention_maps` has the map of each."
            )
    for layer in inner:
        _check_one_after_another(layer)


def _convolutional_source(
    attention: keras.layers.Layer,
) -> tuple[ConvolutionalAttention, bool] | None:
    """Return the layer whose logits ``attention`` adds, and whether it adds nothing else."""
    for node in attention._inbound_nodes:
        pending = [tensor._keras_history for tensor in node.input_tensors[1:]]
        is_alone = len(pending) == 1
        while pending:
            operation, index, _ = pending.pop()
            if isinstance(operation, ConvolutionalAttention):
                return operation, is_alone
            # A sum of logits is an operation or a layer Add; behind any other layer are no logits.
            if isinstance(operation, keras.layers.Add) or not isinstance(
                operation, keras.layers.Layer
            ):
                is_alone = False
                tensors = operation._inbound_nodes[index].input_tensors
                pending += [tensor._keras_history for tensor in tensors]
    return None
