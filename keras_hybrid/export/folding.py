"""Folds batch normalisation into the layer before it, so that quantization sees one set of weights.

LiteRT's converter does that itself, but not always: where a dense layer follows it may move a
normalisation's factors forwards, into the columns of the dense weights, as it does behind the
global depthwise convolution of MobileFaceNet. The columns then differ by orders of magnitude within
rows that have one int8 scale each. In int8 that turned embeddings of a published MobileFaceNet by
up to 20°; folded, they turn by about 10° (``docs/export.md``).
"""

import keras
import numpy as np
from keras import ops

from keras_hybrid.layers.channels_last import Conv2D, DepthwiseConv2D
from keras_hybrid.layers.normalization import BatchNormalization

# The axes of the kernel that make up the output's channels, in their order.
_CHANNEL_AXES = {
    Conv2D: (3,),
    keras.layers.Conv2D: (3,),
    DepthwiseConv2D: (2, 3),
    keras.layers.DepthwiseConv2D: (2, 3),
    keras.layers.Dense: (1,),
}


def fold_batch_normalization(model: keras.Model) -> int:
    """Fold every batch normalisation that follows a linear layer into that layer, in place.

    The function of the model in inference stays the same up to float32 rounding. A normalisation
    is folded if its input is the output of a ``Conv2D``, ``DepthwiseConv2D`` or ``Dense`` layer
    without activation that nothing else takes; it is left as an addition of its offset. Layers of
    other classes are left alone, and so are subclasses that compute something else.

    Args:
        model: A built Functional or Sequential model in float32, ``channels_last``. Its statistics
            are overwritten: train it no further.

    Returns:
        How many normalisations were folded.
    """
    layers = model._flatten_layers()
    graphs = [graph for layer in layers if (graph := functional_graph(layer)) is not None]
    # A layer also remembers calls of graphs that are gone, such as those of a growing Sequential.
    nodes = {id(n) for graph in graphs for level in graph._nodes_by_depth.values() for n in level}
    outputs = {id(x) for graph in graphs for x in graph.outputs}
    folded = 0
    for layer in layers:
        if _is_plain_normalization(layer):
            source = _linear_source(layer, nodes, outputs)
            if source is not None:
                _fold(layer, source)
                folded += 1
    return folded


def functional_graph(layer: keras.Layer) -> keras.Model | None:
    """Return the Functional model that a layer is, if it is one."""
    if isinstance(layer, keras.Sequential):
        return layer._functional
    return layer if hasattr(layer, "_nodes_by_depth") else None


def _is_plain_normalization(layer: keras.Layer) -> bool:
    kinds = (keras.layers.BatchNormalization, BatchNormalization)
    return isinstance(layer, kinds) and type(layer).call in [kind.call for kind in kinds]


def _linear_source(
    normalization: keras.layers.BatchNormalization, nodes: set[int], outputs: set[int]
) -> keras.Layer | None:
    """Return the layer to fold into, if there is one that allows it."""
    calls = [node for node in normalization._inbound_nodes if id(node) in nodes]
    if len(calls) != 1:
        return None
    tensor = calls[0].input_tensors[0]
    source = tensor._keras_history.operation
    if type(source) not in _CHANNEL_AXES or id(tensor) in outputs:
        return None
    for neighbours in (source._inbound_nodes, source._outbound_nodes):
        if sum(id(node) in nodes for node in neighbours) != 1:
            return None
    if source.activation is not keras.activations.linear or getattr(source, "lora_enabled", False):
        return None
    last = len(tensor.shape) - 1
    return source if normalization.axis in (-1, last) else None


def _fold(normalization: keras.layers.BatchNormalization, source: keras.Layer) -> None:
    variance, mean = _float64(normalization.moving_variance), _float64(normalization.moving_mean)
    factor = 1.0 / np.sqrt(variance + normalization.epsilon)
    if normalization.scale:
        factor *= _float64(normalization.gamma)
        normalization.gamma.assign(np.ones_like(factor))
    kernel = _float64(source.kernel)
    axes = _CHANNEL_AXES[type(source)]
    shape = [size if axis in axes else 1 for axis, size in enumerate(kernel.shape)]
    source.kernel.assign(kernel * factor.reshape(shape))
    offset = -mean * factor
    if source.use_bias:
        offset += _float64(source.bias) * factor
        source.bias.assign(np.zeros_like(offset))
    if normalization.center:
        offset += _float64(normalization.beta)
        normalization.beta.assign(np.zeros_like(offset))
    normalization.moving_mean.assign(-offset)
    normalization.moving_variance.assign(np.full_like(variance, 1.0 - normalization.epsilon))


def _float64(variable: keras.Variable) -> np.ndarray:
    return ops.convert_to_numpy(variable).astype(np.float64)
