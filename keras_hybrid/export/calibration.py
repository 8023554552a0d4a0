"""Which representative images an int8 file is not calibrated with: those that no other is like.

The converter takes each tensor's smallest and largest value over all images as its range. A network
without a bound on its activations answers a rare image with values a hundred times the others',
and a range that holds them leaves two or three of 256 levels to all other images.
"""

import keras
import numpy as np
from keras import ops

from keras_hybrid.export.folding import functional_graph

__all__: list[str] = []

# The kinds of quantization that are calibrated with representative images.
CALIBRATED = ("int8", "int8_cpu")
# Photographs of faces differ by a factor of 5 at most in the networks that were looked at, while
# those that ran away were beyond 30.
LARGEST_RATIO = 8.0
LARGEST_SHARE = 0.05


def images_left_out(model: keras.Model, images: np.ndarray) -> list[int]:
    """Return which images to calibrate without.

    Left out is an image whose largest magnitude, in anything that the model computes, is more than
    eight times that of the median image; at most one image in twenty, those that go furthest. Of a
    model within the model its outputs are looked at. A model for batches of a fixed size above one
    is calibrated with all images.

    Args:
        model: The float32 model that is converted.
        images: The representative images (n, height, width, channels).

    Returns:
        Indices of images, in ascending order.
    """
    largest = np.nan_to_num(_largest_magnitudes(model, images), nan=np.inf, posinf=np.inf)
    usual = np.median(largest, axis=0)
    ratios = np.max(largest[:, usual > 0] / usual[usual > 0], axis=1, initial=0.0)
    furthest = np.argsort(-ratios, kind="stable")[: int(LARGEST_SHARE * len(images))]
    return sorted(int(i) for i in furthest if ratios[i] > LARGEST_RATIO)


def _largest_magnitudes(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the largest magnitude of all that is computed (images, tensors)."""
    nodes = [
        node
        for level in functional_graph(model)._nodes_by_depth.values()
        for node in level
        if not node.is_input
    ]
    if not nodes or model.inputs[0].shape[0] not in (None, 1):
        return np.zeros((len(images), 0))
    tensors = [tensor for node in nodes for tensor in node.outputs]
    maxima = [ops.max(ops.abs(ops.cast(x, "float32"))) for x in tensors]
    observer = keras.Model(model.inputs, ops.expand_dims(ops.stack(maxima), 0))
    # One by one: a tensor's first axis may hold windows of all images, or none of the batch.
    return observer.predict(images.astype("float32"), batch_size=1, verbose=0)
