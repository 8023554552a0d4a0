"""How close embeddings come to their own class: the number a margin loss moves."""

from __future__ import annotations

import math

import keras
from keras import ops

__all__ = ["MeanTargetCosine"]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class MeanTargetCosine(keras.metrics.Mean):
    """Mean cosine between each embedding and the centre of its own class.

    For models that end in a cosine classifier. Under a margin loss the accuracy on training data
    soon reaches 1 and says no more, and losses with different scales and margins cannot be
    compared; the mean cosine of the target keeps telling how tight the classes have become, on
    one scale for all margins. A value stuck near 0 is the sign of a margin that does not learn.

    Args:
        name: Name in the logs.
        dtype: Data type of the accumulated sums; float32 by default.

    Call arguments:
        y_true: Integer class ids (batch,) or (batch, 1), or one-hot or mixed labels
            (batch, classes), for which the cosines are weighted by the labels.
        y_pred: Cosines (batch, classes) in [-1, 1].
        sample_weight: Optional weights (batch,).

    Example:
        >>> metric = MeanTargetCosine()
        >>> metric.update_state([1, 0], [[0.1, 0.8], [0.4, 0.3]])
        >>> round(float(metric.result()), 4)
        0.6
    """

    def __init__(self, name: str = "mean_target_cosine", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Add a batch; see the class for shapes. An id that is no class makes it not a number.

        Raises:
            ValueError: If ``y_true`` is neither class ids nor of the shape of ``y_pred``.
        """
        y_pred = ops.cast(ops.convert_to_tensor(y_pred), self.dtype)
        y_true = ops.convert_to_tensor(y_true)
        if len(y_pred.shape) != 2:
            raise ValueError(f"y_pred must have shape (batch, classes), got {y_pred.shape}.")
        if len(y_true.shape) == 1:
            y_true = ops.expand_dims(y_true, -1)
        if len(y_true.shape) != 2 or y_true.shape[1] not in (None, 1, y_pred.shape[1]):
            raise ValueError(
                "y_true must hold class ids (batch,) or labels of the shape of y_pred, "
                f"{y_pred.shape}; got {y_true.shape}."
            )
        if y_true.shape[1] == 1:
            ids, classes = ops.cast(y_true, "int32"), y_pred.shape[1]
            cosines = ops.take_along_axis(y_pred, ops.clip(ids, 0, classes - 1), axis=1)
            is_class = ops.logical_and(ids >= 0, ids < classes)
            cosines = ops.squeeze(ops.where(is_class, cosines, math.nan), axis=1)
        else:
            cosines = ops.sum(ops.cast(y_true, self.dtype) * y_pred, axis=1)
        super().update_state(cosines, sample_weight)
