"""What margin losses share: labels in two forms, angles with finite gradients, cross-entropy."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

GRADIENTS = ("exact", "straight_through")

# sin²θ is kept above this, so that sinθ has a finite gradient at θ = 0 and θ = π.
_MIN_SQUARED_SINE = 1e-12


def check_margins(
    m1: float, m2: float, m3: float, scale: float, gradient: str, name: str | None = None
) -> None:
    """Raise ValueError for a margin, scale or gradient that has no meaning.

    ``name`` is what the caller calls the one margin that it has.
    """
    if not m1 > 0:
        raise ValueError(f"{name or 'm1'} must be greater than 0. Received: {name or 'm1'}={m1}")
    if not 0 <= m2 < math.pi:
        name = name or "m2"
        raise ValueError(f"{name} is an angle in radians in [0, π). Received: {name}={m2}")
    if not m3 >= 0:
        raise ValueError(f"{name or 'm3'} must not be negative. Received: {name or 'm3'}={m3}")
    if not scale > 0:
        raise ValueError(f"scale must be greater than 0. Received: scale={scale}")
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {GRADIENTS}. Received: gradient={gradient!r}")


def as_cosine(cosine):
    """Cast to float32, then clip to [-1, 1] with the identity as gradient.

    Backends disagree about the gradient of a clip at its bounds (0, ½ or 1); this is 1 everywhere.
    """
    cosine = ops.cast(ops.convert_to_tensor(cosine), "float32")
    if len(cosine.shape) != 2:
        raise ValueError(
            f"Cosines must have shape (batch, classes). Received: shape {tuple(cosine.shape)}"
        )
    return cosine + ops.stop_gradient(ops.clip(cosine, -1.0, 1.0) - cosine)


class Labels:
    """Labels in either form, as what to select by: a Boolean mask of ids, or float masses."""

    def __init__(self, labels, cosine):
        labels = ops.convert_to_tensor(labels)
        shape, classes = tuple(labels.shape), cosine.shape[-1]
        if len(shape) == 2 and shape[-1] == 1:
            labels = ops.squeeze(labels, axis=-1)
        elif len(shape) == 2 and shape[-1] == classes:
            self.mask, self.mass = None, ops.cast(labels, "float32")
            return
        elif len(shape) != 1:
            raise ValueError(
                "Labels must be class ids of shape (batch,) or (batch, 1), or label masses of "
                f"shape (batch, classes) = {tuple(cosine.shape)}. Received: shape {shape}"
            )
        ids = ops.expand_dims(ops.cast(labels, "int32"), axis=-1)
        self.mask = ops.equal(ids, ops.expand_dims(ops.arange(classes, dtype="int32"), axis=0))
        self.mass = None

    def pick(self, values):
        """The labelled class's value, weighted by mass: (batch, classes) → (batch, 1)."""
        if self.mask is None:
            return ops.sum(self.mass * values, axis=-1, keepdims=True)
        return ops.sum(ops.where(self.mask, values, 0.0), axis=-1, keepdims=True)

    def total(self):
        """Mass of each row, (batch,); not a number where an id is not a class."""
        if self.mask is None:
            return ops.sum(self.mass, axis=-1)
        # Of two Python numbers TensorFlow would make a tensor in floatx.
        return ops.where(ops.any(self.mask, axis=-1), ops.ones((), "float32"), math.nan)


def on_target(cosine, labels: Labels, target: Callable):
    """Replace the labelled classes' cosines by ``target(cosine)``.

    With ids, `target` sees only (batch, 1): the trigonometry does not grow with the classes.
    """
    if labels.mask is None:
        return cosine + labels.mass * (target(cosine) - cosine)
    return ops.where(labels.mask, target(labels.pick(cosine)), cosine)


def _sine(cosine):
    """Sine of an angle in [0, π] given its cosine, with a finite gradient at both ends."""
    # (1 − c)(1 + c) is exact near ±1 where 1 − c² loses all its digits.
    return ops.sqrt(ops.maximum((1.0 - cosine) * (1.0 + cosine), _MIN_SQUARED_SINE))


def angle_of(cosine):
    """Angle in (0, π) given its cosine, with a finite gradient at both ends."""
    return ops.arctan2(_sine(cosine), cosine)


def angular_target(cosine, m1: float, m2: float, fallback: bool, easy_margin: bool):
    """Compute cos(m1·θ + m2), kept decreasing in θ if so wished."""
    if m1 == 1.0 and m2 == 0.0:
        return cosine
    if m1 == 1.0:
        target = cosine * math.cos(m2) - _sine(cosine) * math.sin(m2)
        if easy_margin:
            return ops.where(cosine > 0.0, target, cosine)
        if fallback:
            beyond = cosine - m2 * math.sin(m2)
            return ops.where(cosine > -math.cos(m2), target, beyond)
        return target
    angle = m1 * angle_of(cosine) + m2
    target = ops.cos(angle)
    if easy_margin:
        return ops.where(cosine > 0.0, target, cosine)
    if fallback:
        turns = ops.stop_gradient(ops.floor(angle / math.pi))
        return (1.0 - 2.0 * ops.mod(turns, 2.0)) * target - 2.0 * turns
    return target


def cross_entropy(logits, labels: Labels, label_smoothing: float):
    """Softmax cross-entropy per row: (batch, classes) → (batch,)."""
    normalizer = ops.logsumexp(logits, axis=-1)
    picked = ops.squeeze(labels.pick(logits), axis=-1)
    losses = labels.total() * normalizer - picked
    if label_smoothing:
        uniform = normalizer - ops.mean(logits, axis=-1)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * uniform
    return losses


class MarginSoftmax(keras.losses.Loss):
    """Cross-entropy over logits that a subclass makes from cosines and labels."""

    def __init__(self, *, scale: float, label_smoothing: float, reduction: str | None, name: str):
        # Keras casts labels and predictions to the loss's dtype: float32 holds every id up to
        # 16,777,216, whatever the policy or floatx.
        super().__init__(name=name, reduction=reduction, dtype="float32")
        if not scale > 0:
            raise ValueError(f"scale must be greater than 0. Received: scale={scale}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing must be in [0, 1). Received: label_smoothing={label_smoothing}"
            )
        self.scale = float(scale)
        self.label_smoothing = float(label_smoothing)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "scale": self.scale,
            "label_smoothing": self.label_smoothing,
        }


def register(cls):
    """Register a loss for saving, as ``…Loss``: layers have the plain names."""
    return keras.saving.register_keras_serializable("keras_hybrid", f"{cls.__name__}Loss")(cls)
