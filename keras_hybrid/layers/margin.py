"""Cosine classifiers, with and without a margin.

`CosineClassifier` is the head of a face model: cosθ between the embedding and one centre per
class (or several: Deng et al. 2020, "Sub-center ArcFace", ECCV, eq. 3). The margin then belongs to
the loss (`keras_hybrid.losses`). `ArcFace` and `CosFace` are the papers' layers, which take the
labels as a second input and put out logits for plain softmax cross-entropy.
"""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_hybrid._arguments import positive_integer
from keras_hybrid.initializers import VarianceScaling
from keras_hybrid.losses.base import check_margins
from keras_hybrid.losses.margin import apply_margin

__all__ = ["ArcFace", "CosFace", "CosineClassifier", "record_embedding_norms"]


class _Recording(threading.local):
    """What is being recorded; each replica of a mirrored strategy runs in a thread of its own."""

    norms: list | None = None


_recording = _Recording()

# Smallest squared norm that is still divided by: the gradient stays finite at a zero vector.
_MIN_SQUARED_NORM = 1e-12


@contextlib.contextmanager
def record_embedding_norms() -> Iterator[list]:
    """Collect the norms of the embeddings that cosine classifiers are called on.

    Norm-aware losses need what normalisation throws away. Within this context every call of a
    `CosineClassifier` appends ‖embedding‖, shape (batch,), float32, without gradient, to the list.
    The list lives as long as the context, so under a tracing backend both belong in one trace.

    Yields:
        The list.
    """
    outer, _recording.norms = _recording.norms, []
    try:
        yield _recording.norms
    finally:
        _recording.norms = outer


def recorded_embedding_norms() -> list | None:
    """Return the list of the innermost `record_embedding_norms`, or None outside of any."""
    return _recording.norms


class _AsMatrix:
    """An initialiser of centres as a matrix: Keras would take the classes of rank 3 for space.

    A class, since Keras traces the ``__call__`` of the initialisers of large sharded weights.
    """

    def __init__(self, initializer):
        self.initializer = initializer

    def __call__(self, shape, dtype=None):
        flat = (math.prod(shape[:-1]), shape[-1])
        return ops.reshape(self.initializer(flat, dtype=dtype), shape)


def _checked_integer(argument: str, value: Any) -> int:
    """Return an integer of any library as Python's own, which a config can hold."""
    number = None if isinstance(value, bool) else positive_integer(value)
    if number is None:
        raise ValueError(f"{argument} must be a positive integer. Received: {argument}={value!r}")
    return number


class _CosineHead(keras.layers.Layer):
    """Centres, and the cosines of an embedding with them."""

    def __init__(
        self,
        classes: int,
        centers_per_class: int = 1,
        kernel_initializer=None,
        **kwargs,
    ):
        # No autocast: half precision rounds cosines by up to 2⁻⁹, which the loss's scale of 64
        # makes an eighth of a logit.
        super().__init__(autocast=False, **kwargs)
        self.classes = _checked_integer("classes", classes)
        self.centers_per_class = _checked_integer("centers_per_class", centers_per_class)
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or VarianceScaling(1.0, "fan_avg", "uniform")
        )

    def build(self, input_shape):
        """Create the centres."""
        if len(input_shape) != 2 or input_shape[-1] is None:
            raise ValueError(
                "The embedding must have shape (batch, dim) with a known dim. "
                f"Received: {tuple(input_shape)}"
            )
        dim = input_shape[-1]
        shape = (self.classes, dim)
        if self.centers_per_class > 1:
            shape = (self.classes, self.centers_per_class, dim)
        self.centers = self.add_weight(
            name="centers",
            shape=shape,
            initializer=_AsMatrix(self.kernel_initializer),
            dtype="float32",
            autocast=False,
        )

    def cosine(self, embedding, centers=None):
        """Return cosθ, shape (batch, classes), float32, in [-1, 1].

        Args:
            embedding: Embedding, shape (batch, dim).
            centers: Those of some classes only; default all.
        """
        embedding = ops.cast(embedding, "float32")
        centers = ops.cast(self.centers if centers is None else centers, "float32")
        classes = centers.shape[0]
        if self.centers_per_class > 1:
            centers = ops.reshape(centers, (-1, centers.shape[-1]))
        squared_norm = ops.sum(ops.square(embedding), axis=-1, keepdims=True)
        norms = _recording.norms
        if norms is not None:
            norms.append(ops.stop_gradient(ops.sqrt(ops.squeeze(squared_norm, axis=-1))))
        embedding = embedding * ops.rsqrt(ops.maximum(squared_norm, _MIN_SQUARED_NORM))
        squared_norm = ops.sum(ops.square(centers), axis=-1, keepdims=True)
        centers = centers * ops.rsqrt(ops.maximum(squared_norm, _MIN_SQUARED_NORM))
        cosine = ops.matmul(embedding, ops.transpose(centers))
        if self.centers_per_class > 1:
            cosine = ops.reshape(cosine, (-1, classes, self.centers_per_class))
            cosine = ops.max(cosine, axis=-1)
        # Only rounding goes beyond ±1, so its gradient passes.
        return cosine + ops.stop_gradient(ops.clip(cosine, -1.0, 1.0) - cosine)

    def compute_output_shape(self, input_shape, *_):
        """Return (batch, classes)."""
        return (input_shape[0], self.classes)

    def compute_output_spec(self, embedding, *_args, **_kwargs):
        """Return (batch, classes), float32 under every dtype policy."""
        return keras.KerasTensor(self.compute_output_shape(embedding.shape), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "classes": self.classes,
            "centers_per_class": self.centers_per_class,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable("keras_hybrid")
class CosineClassifier(_CosineHead):
    """Cosine between an embedding and the centre of every class.

    Both are normalised, and their product computed, in float32 under every dtype policy. Inference
    and accuracy use the cosines as they are: the largest one is the class.

    Args:
        classes: Number of classes.
        centers_per_class: Centres K per class; with more than one, the largest of a class's
            cosines counts, so that noise and odd images of an identity may gather round centres
            of their own (Deng et al. 2020; K = 3 there).
        kernel_initializer: Initialiser of the centres; default Glorot and Bengio 2010, uniform.
        **kwargs: As of `keras.layers.Layer`.

    Raises:
        ValueError: If a count is not a positive integer, or the input is not (batch, dim).

    Call arguments:
        embedding: Embedding, shape (batch, dim), any norm.

    Output:
        cosθ, shape (batch, classes), float32, in [-1, 1].

    Weights:
        ``centers``: shape (classes, dim), or (classes, K, dim) for K > 1, float32.
    """

    def call(self, embedding):
        """Return cosθ."""
        return self.cosine(embedding)


class _MarginHead(_CosineHead):
    """A cosine head that scales, and puts the margin on if it is told the labels."""

    def __init__(self, classes: int, *, scale: float, **kwargs):
        super().__init__(classes, **kwargs)
        self.scale = float(scale)

    def _margins(self) -> dict[str, Any]:
        raise NotImplementedError

    def call(self, embedding, labels=None):
        """Return the logits."""
        cosine = self.cosine(embedding)
        if labels is None:
            return self.scale * cosine
        return apply_margin(cosine, labels, scale=self.scale, **self._margins())

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable("keras_hybrid")
class ArcFace(_MarginHead):
    """ArcFace as a layer: logits s·cosθ, with s·cos(θ + m) for the label.

    Deng et al. 2019, https://arxiv.org/abs/1801.07698, algorithm 1. Train on its output with
    ``SparseCategoricalCrossentropy(from_logits=True)``: the result equals `losses.ArcFace` on a
    `CosineClassifier`, which needs no second input and is what this library's builders use.

    Args:
        classes: Number of classes.
        margin: Angle m in radians, in [0, π).
        scale: Factor s > 0.
        gradient: ``"exact"`` or ``"straight_through"``, see `keras_hybrid.losses.apply_margin`.
        easy_margin: Margin only where θ < 90°.
        centers_per_class: As in `CosineClassifier`.
        kernel_initializer: As in `CosineClassifier`.
        **kwargs: As of `keras.layers.Layer`.

    Raises:
        ValueError: If an argument is out of range, or the input is not (batch, dim).

    Call arguments:
        embedding: Embedding, shape (batch, dim), any norm.
        labels: Optional ids, shape (batch,) or (batch, 1), or one-hot or soft labels, shape
            (batch, classes). Without them there is no margin.

    Output:
        Logits, shape (batch, classes), float32.
    """

    def __init__(
        self,
        classes: int,
        margin: float = 0.5,
        scale: float = 64.0,
        gradient: str = "exact",
        easy_margin: bool = False,
        **kwargs,
    ):
        super().__init__(classes, scale=scale, **kwargs)
        check_margins(1.0, margin, 0.0, scale, gradient, "margin")
        self.margin = float(margin)
        self.gradient = gradient
        self.easy_margin = easy_margin

    def _margins(self) -> dict[str, Any]:
        return {"m2": self.margin, "gradient": self.gradient, "easy_margin": self.easy_margin}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "margin": self.margin,
            "gradient": self.gradient,
            "easy_margin": self.easy_margin,
        }


@keras.saving.register_keras_serializable("keras_hybrid")
class CosFace(_MarginHead):
    """CosFace as a layer: logits s·cosθ, with s·(cosθ − m) for the label.

    Wang et al. 2018, https://arxiv.org/abs/1801.09414, eq. 4; see `ArcFace` for its use.

    Args:
        classes: Number of classes.
        margin: Margin m ≥ 0 on the cosine.
        scale: Factor s > 0.
        centers_per_class: As in `CosineClassifier`.
        kernel_initializer: As in `CosineClassifier`.
        **kwargs: As of `keras.layers.Layer`.

    Raises:
        ValueError: If an argument is out of range, or the input is not (batch, dim).

    Call arguments, output: As of `ArcFace`.
    """

    def __init__(self, classes: int, margin: float = 0.35, scale: float = 64.0, **kwargs):
        super().__init__(classes, scale=scale, **kwargs)
        check_margins(1.0, 0.0, margin, scale, "exact", "margin")
        self.margin = float(margin)

    def _margins(self) -> dict[str, Any]:
        return {"m3": self.margin}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "margin": self.margin}
