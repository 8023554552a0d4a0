"""Repairs to what jax2onnx writes, where ONNX Runtime cannot run it.

``onnx`` is imported by the functions that need it.
"""

from typing import Any


def make_pooling_spatial(model: Any) -> None:
    """Rewrite max pooling over four dimensions as pooling over height and width, in place.

    jax2onnx 0.17 turns a window maximum over ``(batch, height, width, channels)`` into ``MaxPool``
    on a tensor of rank 6, with two axes added for the purpose. The checker accepts that; ONNX
    Runtime, which pools over three dimensions at most, refuses to run it. The same maximum is
    ``MaxPool`` over height and width between two transpositions.

    Args:
        model: An ``onnx.ModelProto``. Only nodes of exactly that form are touched.
    """
    graph = model.graph
    nodes = list(graph.node)
    producers = {name: node for node in nodes for name in node.output}
    consumers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    graph_outputs = {output.name for output in graph.output}
    replacements: dict[int, list[Any]] = {}
    removed: set[int] = set()
    for pool in nodes:
        outer = producers.get(pool.input[0]) if pool.op_type == "MaxPool" else None
        inner = producers.get(outer.input[0]) if outer is not None else None
        after = consumers.get(pool.output[0], [])
        chain = [node.op_type for node in (inner, outer, *after) if node is not None]
        if chain != ["Unsqueeze", "Unsqueeze", "Squeeze"]:
            continue
        if graph_outputs & {inner.output[0], outer.output[0], pool.output[0]}:
            continue
        spatial = _spatial_attributes(pool)
        if spatial is None:
            continue
        replacements[id(after[0])] = _pooling(inner.input[0], after[0].output[0], pool, spatial)
        removed.update((id(pool), id(after[0])))
        for node, user in ((outer, pool), (inner, outer)):
            if all(other is user for other in consumers[node.output[0]]):
                removed.add(id(node))
            else:
                break
    if not replacements:
        return
    kept = []
    for node in nodes:
        kept.extend(replacements.get(id(node), () if id(node) in removed else (node,)))
    used = {name for node in kept for name in (*node.input, *node.output)} | graph_outputs
    copies = [type(node).FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)
    for field in (graph.initializer, graph.value_info):
        for index in reversed(range(len(field))):
            if field[index].name not in used:
                del field[index]


def _spatial_attributes(pool: Any) -> dict[str, list[int]] | None:
    """Return a pooling node's attributes for height and width, if it pools nothing else."""
    found = {attribute.name: list(attribute.ints) for attribute in pool.attribute}
    if set(found) - {"kernel_shape", "strides", "pads", "dilations"}:
        return None
    if len(found.get("kernel_shape", ())) != 4:
        return None
    neutral = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0}
    spatial = {}
    for name, values in found.items():
        begins_and_ends = [values[:4], values[4:]] if name == "pads" else [values]
        if any(part[0] != neutral[name] or part[3] != neutral[name] for part in begins_and_ends):
            return None
        spatial[name] = [value for part in begins_and_ends for value in part[1:3]]
    return spatial


def _pooling(source: str, target: str, pool: Any, attributes: dict[str, list[int]]) -> list[Any]:
    """Return the nodes that pool the channels-last tensor ``source`` into ``target``."""
    from onnx import helper

    channels_first, pooled = f"{target}_channels_first", f"{target}_pooled"
    return [
        helper.make_node(
            "Transpose", [source], [channels_first], f"{pool.name}_before", perm=[0, 3, 1, 2]
        ),
        helper.make_node("MaxPool", [channels_first], [pooled], pool.name, **attributes),
        helper.make_node("Transpose", [pooled], [target], f"{pool.name}_after", perm=[0, 2, 3, 1]),
    ]
