"""Scaled dot-product attention of separate heads: the map, and the fused kernel that skips it."""

import keras
from keras import ops

__all__ = ["attend", "attention_map", "on_cpu"]


def number_of_tokens(x):
    """Return the length of axis 1, of a tensor whose shape says none as a tensor."""
    return ops.shape(x)[1] if x.shape[1] is None else x.shape[1]


def attend(query, key, value, scale, bias=None, dropout=None, training=None, remat=False, mix=None):
    """Return ``softmax(scale · QKᵀ + bias) V`` of every head.

    Where the backend has a fused kernel that pays, the map is never written to memory
    (``keras.ops.dot_product_attention``). Dropout of the map, and what mixes it, need the map.

    Args:
        query: Shape (batch, queries, heads, width).
        key: Shape (batch, keys, heads, width).
        value: Shape (batch, keys, heads, width).
        scale: Factor on QKᵀ.
        bias: Optional logits; see :func:`attention_map`.
        dropout: Optional ``keras.layers.Dropout`` on the map.
        training: Whether it drops, and ``remat`` counts.
        remat: Whether the gradient computes the map again instead of keeping it (``keras.remat``);
            a map with dropped parts is kept.
        mix: Optional (function, tensors): ``function(map, *tensors)`` takes the map's place.

    Returns:
        Tensor of shape (batch, queries, heads, width).
    """
    drops = dropout is not None and dropout.rate > 0 and training
    if not drops and mix is None and _has_fused_kernel(query, bias):
        if bias is not None:
            bias = ops.reshape(bias, (*(1,) * (4 - len(bias.shape)), *bias.shape))
        return ops.dot_product_attention(query, key, value, bias=bias, scale=scale)
    function, tensors = mix or (None, ())
    logits = () if bias is None else (bias,)

    # What has a gradient must come as an argument: TensorFlow's remat forgets what is captured.
    def attended(query, key, value, *rest):
        scores = attention_map(query, key, scale, *rest[: len(logits)])
        if function is not None:
            scores = function(scores, *rest[len(logits) :])
        if drops:
            scores = dropout(scores, training=training)
        value = ops.transpose(value, (0, 2, 1, 3))
        return ops.transpose(ops.matmul(scores, value), (0, 2, 1, 3))

    if remat and training and not drops:  # what is drawn again would be other parts
        attended = keras.remat(attended)
    return attended(query, key, value, *logits, *tensors)


def attention_map(query, key, scale, bias=None):
    """Return ``softmax(scale · QKᵀ + bias)``.

    Args:
        query: Shape (batch, queries, heads, width).
        key: Shape (batch, keys, heads, width).
        scale: Factor on QKᵀ.
        bias: Optional logits, broadcastable to (batch, heads, queries, keys), or (n, heads,
            queries, keys) for a batch of groups of n, as the windows of an image: each member of a
            group has logits of its own.

    Returns:
        Tensor of shape (batch, heads, queries, keys); each row sums to 1.
    """
    # Scaling the query costs tokens x width, scaling the logits tokens x tokens.
    query = ops.transpose(query * scale, (0, 2, 1, 3))
    logits = ops.matmul(query, ops.transpose(key, (0, 2, 3, 1)))
    if bias is not None:
        bias = ops.cast(bias, logits.dtype)
        groups = _groups(bias, query)
        if groups is None:
            logits = logits + bias
        else:
            _, heads, queries, keys = logits.shape
            # A group's members stand beside the heads for as long as the sum takes.
            logits = ops.reshape(logits, (-1, groups * heads, queries, keys))
            logits = logits + ops.reshape(bias, (1, -1, queries, keys))
            logits = ops.reshape(logits, (-1, heads, queries, keys))
    return ops.softmax(logits, axis=-1)


def on_cpu(x) -> bool:
    """Whether a tensor is computed on a CPU."""
    if keras.backend.backend() == "torch":
        return x.device.type in ("cpu", "meta")
    return all(device.lower().startswith("cpu") for device in keras.distribution.list_devices())


def _groups(bias, query) -> int | None:
    """Members of a group that have logits of their own, or None where logits broadcast."""
    members = bias.shape[0] if len(bias.shape) == 4 else 1
    return None if members in (None, 1, query.shape[0]) else members


def _has_fused_kernel(query, bias) -> bool:
    """Whether ``keras.ops.dot_product_attention`` is more than the two products of `attend`."""
    backend = keras.backend.backend()
    if backend == "tensorflow" or (bias is not None and _groups(bias, query) is not None):
        return False
    if backend == "jax":
        # On a TPU, Keras 3.15 drops the bias, masks what comes later and scales twice.
        devices = keras.distribution.list_devices()
        return all(device.lower().startswith(("gpu", "cuda", "rocm")) for device in devices)
    if not on_cpu(query):
        return True
    # PyTorch's kernel for CPUs is slow in bfloat16, and has no gradient of the logits.
    is_trained = getattr(bias, "requires_grad", False)
    is_float32 = keras.backend.standardize_dtype(query.dtype) == "float32"
    return is_float32 and not is_trained
