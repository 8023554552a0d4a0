"""The graph of a model: which call of a layer or an operation reads which."""

from collections.abc import Collection
from typing import Any

import keras

__all__ = ["Call", "ancestors", "is_attention", "parents_of_calls"]

Call = tuple[Any, int]  # a layer or an operation, and the number of its node
_KERAS_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


def parents_of_calls(model: keras.Model) -> dict[Call, list[Call]]:
    """Return the calls between image and score, each after its inputs, and what each reads.

    Of attention the tokens alone are read: a bias on its logits is no evidence. A model within the
    model is one call.

    Args:
        model: A Functional or built Sequential model.
    """
    graph: dict[Call, list[Call]] = {}
    parents: dict[Call, list[Call]] = {}

    def call_of(tensor) -> Call:
        history = tensor._keras_history
        return history.operation, history.node_index

    pending = [call_of(tensor) for tensor in model.outputs]
    roots = {call_of(tensor) for tensor in model.inputs}
    while pending:
        call = pending[-1]
        if call in graph:
            pending.pop()
            continue
        if call not in parents:
            operation, index = call
            read = [] if call in roots else operation._inbound_nodes[index].input_tensors
            parents[call] = [call_of(t) for t in (read[:1] if is_attention(operation) else read)]
        waiting = [parent for parent in parents[call] if parent not in graph]
        if waiting:
            pending += waiting
        else:
            graph[call] = parents[call]
            pending.pop()
    return graph


def ancestors(
    parents: dict[Call, list[Call]], call: Call, stop: Collection[Call] = ()
) -> set[Call]:
    """Return the calls whose results reach a call.

    Args:
        parents: As `parents_of_calls` returns.
        call: One of them.
        stop: Calls that are found, but not what lies behind them.
    """
    found: set[Call] = set()
    pending = list(parents[call])
    while pending:
        parent = pending.pop()
        if parent not in found:
            found.add(parent)
            pending += [] if parent in stop else parents[parent]
    return found


def is_attention(operation: Any) -> bool:
    """Return whether a layer is one of self-attention, Keras's own or one that shows its map."""
    return hasattr(operation, "attention_scores") or isinstance(operation, _KERAS_ATTENTION)
