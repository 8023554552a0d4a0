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

# The axes of the kernel that make up the output's channels, in their order.
_CHANNEL_AXES = {
    keras.layers.Conv2D: (3,),
    keras.layers.DepthwiseConv2D: (2, 3),
    keras.layers.Dense: (1,),
}


def fold_batch_normalization(model: keras.Model) -> int:
    """Fold every batch normalisation that follows a linear layer into that layer, in place.

    The function of the model in inference stays the same up to float32 rounding. A normalisation
    is folded if its input is the output of a ``Conv2D``, ``DepthwiseConv2D`` or ``Dense`` layer
    without activation that nothing else takes; it is left as an addition of its offset.

    Args:
        model: A built Functional or Sequential model in float32, ``channels_last``. Its statistics
            are overwritten: train it no further.

    Returns:
        How many normalisations were folded.
    """
    layers = model._flatten_layers()
    outputs = {id(x) for m in layers if isinstance(m, keras.Model) for x in _outputs(m)}
    folded = 0
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            source = _linear_source(layer, outputs)
            if source is not None:
                _fold(layer, source)
                folded += 1
    return folded


def _outputs(model: keras.Model) -> list:
    return getattr(model, "outputs", None) or []


def _linear_source(
    normalization: keras.layers.BatchNormalization, outputs: set[int]
) -> keras.Layer | None:
    """Return the layer to fold into, if there is one that allows it."""
    if len(normalization._inbound_nodes) != 1:
        return None
    tensor = normalization._inbound_nodes[0].input_tensors[0]
    source = tensor._keras_history.operation
    used_once = len(source._inbound_nodes) == len(source._outbound_nodes) == 1
    if type(source) not in _CHANNEL_AXES or not used_once or id(tensor) in outputs:
        return None
    if source.activation is not keras.activations.linear:
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
