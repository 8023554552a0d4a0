"""Margin softmax losses on cosines.

A margin loss takes what a cosine classifier puts out, cosθ of shape (batch, classes) in
[-1, 1], makes the target's cosine harder to reach, scales, and applies softmax cross-entropy:

    loss = −log softmax(scale · margin(cosθ))[label],   target: cos(m1·θ + m2) − m3

| loss | target | paper |
|---|---|---|
| `ArcFace` | cos(θ + m) | Deng et al. 2019, arXiv:1801.07698, eq. 3 |
| `CosFace` | cosθ − m | Wang et al. 2018, arXiv:1801.09414, eq. 4 |
| `SphereFace` | cos(m·θ) | Liu et al. 2017, arXiv:1704.08063, eq. 7 |
| `CombinedMargin` | cos(m1·θ + m2) − m3 | Deng et al. 2019, eq. 4 |
| `CurricularFace` | ArcFace's; hard negatives raised | Huang et al. 2020, arXiv:2004.00288 |
| `AdaFace` | margin by image quality | Kim et al. 2022, arXiv:2204.00964 |

Everything here computes in float32 whatever the dtype policy: half precision cannot represent
class ids above 2048 (float16) or 256 (bfloat16), nor angles near 0.

Two gradients are in use in the field. ``"exact"`` (default) differentiates the target:
dL/dc = s·(p − y)·sin(θ + m)/sinθ. ``"straight_through"`` is what insightface's arcface_torch
trains with (its arccos and cos run without gradient): dL/dc = s·(p − y). Near θ = 0 the exact one
is much larger; the normalisation of the embedding, whose Jacobian vanishes there, keeps the
product bounded.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
from keras import ops

__all__ = [
    "AdaFace",
    "AdaptiveMarginLoss",
    "ArcFace",
    "CombinedMargin",
    "CosFace",
    "CurricularFace",
    "MarginState",
    "SphereFace",
    "apply_margin",
]

GRADIENTS = ("exact", "straight_through")

# sin²θ is kept above this, so that sinθ has a finite gradient at θ = 0 and θ = π.
_MIN_SQUARED_SINE = 1e-12


def apply_margin(
    cosine,
    labels,
    *,
    m1: float = 1.0,
    m2: float = 0.0,
    m3: float = 0.0,
    scale: float = 64.0,
    gradient: str = "exact",
    fallback: bool | None = None,
    easy_margin: bool = False,
):
    """Put the margin cos(m1·θ + m2) − m3 on the target's cosine and scale.

    Args:
        cosine: Cosines cosθ, shape (batch, classes), any float dtype. Rounding beyond [-1, 1] is
            clipped, without masking the gradient.
        labels: Class ids, shape (batch,) or (batch, 1), any dtype that holds them exactly; or label
            masses in [0, 1], shape (batch, classes): one-hot, or soft (MixUp, CutMix). A class with
            mass y gets the logit of (1 − y)·c + y·margin(c), so a one-hot row equals its id, and a
            mixed image meets each of its classes' margins in the mixing proportion. An id outside
            [0, classes) gets no margin.
        m1: Multiplicative angular margin (SphereFace), > 0.
        m2: Additive angular margin in radians (ArcFace), in [0, π).
        m3: Additive cosine margin (CosFace), ≥ 0.
        scale: Factor s on all cosines, > 0.
        gradient: ``"exact"``, or ``"straight_through"`` for dL/dc = s·(p − y) as in insightface.
        fallback: Whether to keep the target decreasing in θ where m1·θ + m2 exceeds π and the
            cosine turns round. With m1 = 1: cosθ − m2·sin(m2), ArcFace's original code. With
            m1 ≠ 1: SphereFace's piecewise (−1)^k·cos(m1·θ + m2) − 2k. ``None``: with the exact
            gradient yes; with the straight-through one no, as in insightface.
        easy_margin: Margin on m1 and m2 only where θ < 90°, plain cosθ elsewhere (ArcFace's
            original code); replaces the fallback.

    Returns:
        Logits s·margin(cosθ), shape (batch, classes), float32.

    Raises:
        ValueError: If a number is out of range, `gradient` is unknown, or `labels` do not fit
            `cosine`.
    """
    _check_margins(m1, m2, m3, scale, gradient)
    cosine = _as_cosine(cosine)
    if fallback is None:
        fallback = gradient == "exact"

    def target(value):
        margined = _angular_target(value, m1, m2, fallback, easy_margin) - m3
        if gradient == "straight_through":
            margined = value + ops.stop_gradient(margined - value)
        return margined

    return scale * _on_target(cosine, _Labels(labels, cosine), target)


def _check_margins(m1: float, m2: float, m3: float, scale: float, gradient: str) -> None:
    if not m1 > 0:
        raise ValueError(f"m1 must be greater than 0. Received: m1={m1}")
    if not 0 <= m2 < math.pi:
        raise ValueError(f"m2 is an angle in radians in [0, π). Received: m2={m2}")
    if not m3 >= 0:
        raise ValueError(f"m3 must not be negative. Received: m3={m3}")
    if not scale > 0:
        raise ValueError(f"scale must be greater than 0. Received: scale={scale}")
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {GRADIENTS}. Received: gradient={gradient!r}")


def _as_cosine(cosine):
    """Cast to float32, then clip to [-1, 1] with the identity as gradient.

    Backends disagree about the gradient of a clip at its bounds (0, ½ or 1); this is 1 everywhere.
    """
    cosine = ops.cast(ops.convert_to_tensor(cosine), "float32")
    if len(cosine.shape) != 2:
        raise ValueError(
            f"Cosines must have shape (batch, classes). Received: shape {tuple(cosine.shape)}"
        )
    return cosine + ops.stop_gradient(ops.clip(cosine, -1.0, 1.0) - cosine)


class _Labels:
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
        return ops.where(ops.any(self.mask, axis=-1), 1.0, math.nan)


def _on_target(cosine, labels: _Labels, target: Callable):
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


def _angle(cosine):
    """Angle in (0, π) given its cosine, with a finite gradient at both ends."""
    return ops.arctan2(_sine(cosine), cosine)


def _angular_target(cosine, m1: float, m2: float, fallback: bool, easy_margin: bool):
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
    angle = m1 * _angle(cosine) + m2
    target = ops.cos(angle)
    if easy_margin:
        return ops.where(cosine > 0.0, target, cosine)
    if fallback:
        turns = ops.stop_gradient(ops.floor(angle / math.pi))
        return (1.0 - 2.0 * ops.mod(turns, 2.0)) * target - 2.0 * turns
    return target


def _cross_entropy(logits, labels: _Labels, label_smoothing: float):
    """Softmax cross-entropy per row: (batch, classes) → (batch,)."""
    normalizer = ops.logsumexp(logits, axis=-1)
    picked = ops.squeeze(labels.pick(logits), axis=-1)
    losses = labels.total() * normalizer - picked
    if label_smoothing:
        uniform = normalizer - ops.mean(logits, axis=-1)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * uniform
    return losses


class _MarginSoftmax(keras.losses.Loss):
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


class _FixedMargin(_MarginSoftmax):
    """A margin loss whose margin is the same for every sample: `apply_margin`, cross-entropy."""

    def __init__(
        self,
        *,
        m1: float = 1.0,
        m2: float = 0.0,
        m3: float = 0.0,
        scale: float,
        gradient: str = "exact",
        fallback: bool | None = None,
        easy_margin: bool = False,
        label_smoothing: float,
        reduction: str | None,
        name: str,
    ):
        super().__init__(
            scale=scale, label_smoothing=label_smoothing, reduction=reduction, name=name
        )
        _check_margins(m1, m2, m3, scale, gradient)
        self.m1, self.m2, self.m3 = float(m1), float(m2), float(m3)
        self.gradient = gradient
        self.fallback = fallback
        self.easy_margin = easy_margin

    def logits(self, cosine, labels):
        """Return the logits under the margin.

        Args:
            cosine: Cosines, shape (batch, classes).
            labels: Ids, shape (batch,) or (batch, 1), or masses, shape (batch, classes).

        Returns:
            Logits, shape (batch, classes), float32.
        """
        return apply_margin(
            cosine,
            labels,
            m1=self.m1,
            m2=self.m2,
            m3=self.m3,
            scale=self.scale,
            gradient=self.gradient,
            fallback=self.fallback,
            easy_margin=self.easy_margin,
        )

    def call(self, y_true, y_pred):
        """Return the loss per sample, shape (batch,)."""
        labels = _Labels(y_true, y_pred)
        return _cross_entropy(self.logits(y_pred, y_true), labels, self.label_smoothing)


# Layers of the same names are registered under the plain names.
def _register(cls):
    register = keras.saving.register_keras_serializable("keras_hybrid", f"{cls.__name__}Loss")
    return register(cls)


@_register
class ArcFace(_FixedMargin):
    """Additive angular margin: the target's logit is s·cos(θ + m).

    Deng et al. 2019, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", eq. 3.
    Where θ + m > π the target is cosθ − m·sin(m), as in the authors' first code; insightface's
    present code has no such fallback and another gradient: ``gradient="straight_through"`` gives
    both.

    ArcFace at m = 0.5 and s = 64 is known to stall on transformers trained from scratch; start
    with `CosFace`, a smaller margin, or s ≈ 30 for less than a thousand classes.

    Args:
        margin: Angle m in radians, in [0, π).
        scale: Factor s > 0.
        gradient: ``"exact"`` or ``"straight_through"``.
        easy_margin: Margin only where θ < 90°.
        fallback: Whether to use the fallback; ``None``: with the exact gradient only.
        label_smoothing: Mass in [0, 1) spread evenly over all classes in the cross-entropy (the
            margin stays on the label alone).
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Raises:
        ValueError: If an argument is out of range.

    Call arguments:
        y_true: Class ids, shape (batch,) or (batch, 1); or one-hot or soft labels, shape
            (batch, classes). An id that is not a class makes the loss not a number.
        y_pred: Cosines, shape (batch, classes).
        sample_weight: Optional weights, shape (batch,).
    """

    def __init__(
        self,
        margin: float = 0.5,
        scale: float = 64.0,
        gradient: str = "exact",
        easy_margin: bool = False,
        *,
        fallback: bool | None = None,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "arcface",
    ):
        super().__init__(
            m2=margin,
            scale=scale,
            gradient=gradient,
            fallback=fallback,
            easy_margin=easy_margin,
            label_smoothing=label_smoothing,
            reduction=reduction,
            name=name,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "margin": self.m2,
            "gradient": self.gradient,
            "easy_margin": self.easy_margin,
            "fallback": self.fallback,
        }


@_register
class CosFace(_FixedMargin):
    """Additive cosine margin: the target's logit is s·(cosθ − m).

    Wang et al. 2018, "CosFace: Large Margin Cosine Loss for Deep Face Recognition", eq. 4. The
    gradient s·(p − y) is exact and straight-through at once. Also known as AM-Softmax.

    Args:
        margin: Margin m ≥ 0 on the cosine.
        scale: Factor s > 0.
        label_smoothing: As in `ArcFace`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Raises:
        ValueError: If an argument is out of range.

    Call arguments: As of `ArcFace`.
    """

    def __init__(
        self,
        margin: float = 0.35,
        scale: float = 64.0,
        *,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "cosface",
    ):
        super().__init__(
            m3=margin, scale=scale, label_smoothing=label_smoothing, reduction=reduction, name=name
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "margin": self.m3}


@_register
class SphereFace(_FixedMargin):
    """Multiplicative angular margin: the target's logit is s·ψ(θ), ψ(θ) = (−1)^k·cos(m·θ) − 2k.

    Liu et al. 2017, "SphereFace: Deep Hypersphere Embedding for Face Recognition", eq. 7, with
    k = ⌊m·θ/π⌋, which keeps ψ continuous and decreasing. The paper has integer m = 4, multiplies by
    the embedding's norm and anneals from plain softmax. This is the form that the ArcFace paper
    and insightface compare with: normalised embeddings, a fixed scale, real m, by default the
    m = 1.35 of the ArcFace paper's tables.

    Args:
        margin: Factor m on the angle, > 0; 1 is plain softmax on cosines.
        scale: Factor s > 0.
        gradient: ``"exact"`` or ``"straight_through"``.
        fallback: Whether to use ψ rather than cos(m·θ) itself; ``None``: with the exact gradient.
        label_smoothing: As in `ArcFace`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Raises:
        ValueError: If an argument is out of range.

    Call arguments: As of `ArcFace`.
    """

    def __init__(
        self,
        margin: float = 1.35,
        scale: float = 64.0,
        gradient: str = "exact",
        *,
        fallback: bool | None = None,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "sphereface",
    ):
        super().__init__(
            m1=margin,
            scale=scale,
            gradient=gradient,
            fallback=fallback,
            label_smoothing=label_smoothing,
            reduction=reduction,
            name=name,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "margin": self.m1,
            "gradient": self.gradient,
            "fallback": self.fallback,
        }


@_register
class CombinedMargin(_FixedMargin):
    """All three margins: the target's logit is s·(cos(m1·θ + m2) − m3).

    Deng et al. 2019, eq. 4. insightface's `CombinedMarginLoss` ignores m2 when m3 > 0 and fails
    for m1 ≠ 1 with m3 = 0; this computes the formula for every combination.

    Args:
        m1: Factor on the angle, > 0.
        m2: Angle in radians, in [0, π).
        m3: Margin on the cosine, ≥ 0.
        scale: Factor s > 0.
        gradient: ``"exact"`` or ``"straight_through"``.
        easy_margin: m1 and m2 only where θ < 90°.
        fallback: As in `apply_margin`.
        label_smoothing: As in `ArcFace`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Raises:
        ValueError: If an argument is out of range.

    Call arguments: As of `ArcFace`.
    """

    def __init__(
        self,
        m1: float = 1.0,
        m2: float = 0.5,
        m3: float = 0.0,
        scale: float = 64.0,
        gradient: str = "exact",
        easy_margin: bool = False,
        *,
        fallback: bool | None = None,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "combined_margin",
    ):
        super().__init__(
            m1=m1,
            m2=m2,
            m3=m3,
            scale=scale,
            gradient=gradient,
            fallback=fallback,
            easy_margin=easy_margin,
            label_smoothing=label_smoothing,
            reduction=reduction,
            name=name,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "m1": self.m1,
            "m2": self.m2,
            "m3": self.m3,
            "gradient": self.gradient,
            "easy_margin": self.easy_margin,
            "fallback": self.fallback,
        }


class MarginState(keras.metrics.Metric):
    """What an adaptive margin loss remembers from batch to batch.

    A metric, because metrics are the one kind of state that a Keras training step carries on every
    backend without making it a weight of the model. It survives `reset_state`, so that it outlives
    the epoch, and its values appear in the logs.

    Args:
        loss: The `AdaptiveMarginLoss` whose state this is.
        name: Name of the metric.
    """

    def __init__(self, loss: "AdaptiveMarginLoss", name: str = "margin_state"):
        super().__init__(name=name, dtype="float32")
        # Not by `add_variable`: on a mirrored strategy each replica would keep a value of its own.
        with keras.name_scope(name):
            self._values = {
                key: keras.Variable(
                    value,
                    dtype="float32",
                    trainable=False,
                    aggregation="mean",
                    synchronization="on_write",
                    name=key,
                )
                for key, value in loss.initial_state().items()
            }

    def read(self) -> dict[str, Any]:
        """Return the values, float32 scalars by name."""
        return {key: ops.convert_to_tensor(value) for key, value in self._values.items()}

    def update_state(self, values: Mapping[str, Any]) -> None:
        """Remember new values."""
        for key, value in values.items():
            self._values[key].assign(value)

    def reset_state(self) -> None:
        """Do nothing: the state outlives the epoch."""

    def result(self) -> dict[str, Any]:
        """Return the values for the logs."""
        # Copies: JAX's next training step takes the variables' own buffers away.
        return {key: value + 0.0 for key, value in self.read().items()}

    def save_own_variables(self, store) -> None:
        """Save the values by name."""
        for key, value in self._values.items():
            store[key] = keras.ops.convert_to_numpy(value)

    def load_own_variables(self, store) -> None:
        """Load the values; a file that has none (saved without this loss) leaves them alone."""
        for key, value in self._values.items():
            if key in store:
                value.assign(store[key][()])


class _Supply(threading.local):
    """What a training or evaluation step gives to its adaptive loss.

    Each replica of a mirrored strategy runs in a thread of its own.
    """

    state: MarginState | None = None
    norms: Any = None
    training: bool = False


_supply = _Supply()


class AdaptiveMarginLoss(_MarginSoftmax):
    """A margin loss with state, such as `CurricularFace` and `AdaFace`.

    The mathematics are two pure functions: ``next_state(state, cosine, labels, norms)`` and
    ``logits(cosine, labels, state, norms)``. `keras_hybrid.applications.MarginModel`, which every
    builder of this library returns, keeps the state and supplies the norms, so that ``compile``
    and ``fit`` need nothing special. Called bare, the loss has neither and says so.
    """

    needs_norms = False

    def initial_state(self) -> dict[str, float]:
        """Return the state before the first batch."""
        raise NotImplementedError

    def next_state(self, state: Mapping[str, Any], cosine, labels, norms=None) -> dict[str, Any]:
        """Return the state after seeing a batch; no gradient runs through it."""
        raise NotImplementedError

    def logits(self, cosine, labels, state: Mapping[str, Any], norms=None):
        """Return the logits, shape (batch, classes), float32, under the given state."""
        raise NotImplementedError

    @contextlib.contextmanager
    def supplied(self, state: MarginState, norms=None, training: bool = False) -> Iterator[None]:
        """Supply the loss for the calls within.

        Args:
            state: The state to read and, when training, to update **before** it is used.
            norms: Norms of the embeddings, shape (batch,), if the loss needs them.
            training: Whether to update the state.
        """
        outer = _supply.state, _supply.norms, _supply.training
        _supply.state, _supply.norms, _supply.training = state, norms, training
        try:
            yield
        finally:
            _supply.state, _supply.norms, _supply.training = outer

    def call(self, y_true, y_pred):
        """Return the loss per sample, shape (batch,)."""
        if _supply.state is None:
            raise ValueError(
                f"{type(self).__name__} keeps state from batch to batch"
                f"{' and needs the norms of the embeddings' if self.needs_norms else ''}, which a "
                "bare call does not supply. Compile it on a "
                "`keras_hybrid.applications.MarginModel` (what all builders return), or use its "
                "`next_state` and `logits`."
            )
        state, norms = _supply.state.read(), _supply.norms
        if _supply.training:
            _supply.state.update_state(self.next_state(state, y_pred, y_true, norms))
            state = _supply.state.read()  # on a mirrored strategy the mean of all replicas'
        logits = self.logits(y_pred, y_true, state, norms)
        return _cross_entropy(logits, _Labels(y_true, y_pred), self.label_smoothing)

    def _check_norms(self, norms):
        if norms is None:
            raise ValueError(
                f"{type(self).__name__} needs the norms of the embeddings, shape (batch,). "
                "Received: norms=None"
            )
        norms = ops.cast(ops.convert_to_tensor(norms), "float32")
        return ops.stop_gradient(ops.reshape(norms, (-1,)))


@_register
class CurricularFace(AdaptiveMarginLoss):
    """ArcFace whose hard negatives weigh more as training goes on.

    Huang et al. 2020, "CurricularFace: Adaptive Curriculum Learning Loss for Deep Face
    Recognition". A negative with cosθ_j > cos(θ_y + m) gets cosθ_j·(t + cosθ_j) in place
    of cosθ_j. t is the running mean of the target's cosine, t ← (1 − momentum)·mean(cosθ_y) +
    momentum·t, updated before use, without gradient. The target, with fallback, is that of
    `ArcFace`; its gradient is exact. As in the authors' code, the comparison that finds hard
    negatives is with cos(θ_y + m) without fallback. Rows of soft labels, which the paper does not
    have, use the mass-weighted cosine of their classes.

    In the logs: ``curriculum_t``.

    Args:
        margin: Angle m in radians, in [0, π).
        scale: Factor s > 0.
        momentum: Share in [0, 1] of the old t in the new one.
        label_smoothing: As in `ArcFace`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Raises:
        ValueError: If an argument is out of range, or if called without a
            `keras_hybrid.applications.MarginModel` around it.

    Call arguments: As of `ArcFace`.
    """

    def __init__(
        self,
        margin: float = 0.5,
        scale: float = 64.0,
        momentum: float = 0.99,
        *,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "curricularface",
    ):
        super().__init__(
            scale=scale, label_smoothing=label_smoothing, reduction=reduction, name=name
        )
        _check_margins(1.0, margin, 0.0, scale, "exact")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1]. Received: momentum={momentum}")
        self.margin = float(margin)
        self.momentum = float(momentum)

    def initial_state(self) -> dict[str, float]:
        """Return t = 0: hard negatives are first played down."""
        return {"curriculum_t": 0.0}

    def next_state(self, state: Mapping[str, Any], cosine, labels, norms=None) -> dict[str, Any]:
        """Return the new t, given the old one and a batch."""
        cosine = _as_cosine(cosine)
        mean = ops.mean(_Labels(labels, cosine).pick(cosine))
        new = (1.0 - self.momentum) * mean + self.momentum * state["curriculum_t"]
        return {"curriculum_t": ops.stop_gradient(new)}

    def logits(self, cosine, labels, state: Mapping[str, Any], norms=None):
        """Return the logits under a given t.

        Args:
            cosine: Cosines, shape (batch, classes).
            labels: Ids, shape (batch,) or (batch, 1), or masses, shape (batch, classes).
            state: ``{"curriculum_t": t}``.
            norms: Not used.

        Returns:
            Logits, shape (batch, classes), float32.
        """
        cosine = _as_cosine(cosine)
        labels = _Labels(labels, cosine)
        t = ops.cast(state["curriculum_t"], "float32")
        bound = _angular_target(labels.pick(cosine), 1.0, self.margin, False, False)
        negatives = ops.where(cosine > bound, cosine * (t + cosine), cosine)
        targets = _on_target(
            cosine, labels, lambda value: _angular_target(value, 1.0, self.margin, True, False)
        )
        if labels.mask is None:
            return self.scale * (targets + (1.0 - labels.mass) * (negatives - cosine))
        return self.scale * ops.where(labels.mask, targets, negatives)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "margin": self.margin, "momentum": self.momentum}


@_register
class AdaFace(AdaptiveMarginLoss):
    """Margins by image quality, read off the norm of the embedding.

    Kim et al. 2022, "AdaFace: Quality Adaptive Margin for Face Recognition" (g_angle, g_add). With
    z = clip(h·(‖x‖ − μ)/(σ + ε), −1, 1) the target is cos(θ − m·z) − (m + m·z): ArcFace for the
    worst images (z = −1), CosFace for middling ones (z = 0), and for the best (z = 1) a cosine
    margin of 2m with a negative angle, which weighs hard samples more. μ and σ are running
    mean and (unbiased) standard deviation of the norms, updated before use, without gradient. As in
    the authors' code, norms are clipped to [0.001, 100], cosines to ±(1 − ε) and the target's angle
    to [ε, π − ε]; beyond a clip there is no gradient.

    Unlike there: `t_alpha` is by default the 0.01 that the paper (α = 0.99) and their training
    script have, not their class's 1.0; and a batch of one image, whose standard deviation does not
    exist, leaves μ and σ alone.

    In the logs: ``norm_mean`` and ``norm_std``.

    Args:
        margin: Margin m, in [0, π).
        h: Concentration of z, > 0; 0.333 lets the middle 99.7 % of a normal distribution through.
        scale: Factor s > 0.
        t_alpha: Share in [0, 1] of the batch's statistics in the running ones.
        epsilon: ε, in (0, 1).
        label_smoothing: As in `ArcFace`.
        reduction: As in `keras.losses.Loss`.
        name: Name of the loss.

    Raises:
        ValueError: If an argument is out of range, or if called without a
            `keras_hybrid.applications.MarginModel` around it.

    Call arguments: As of `ArcFace`.
    """

    needs_norms = True

    def __init__(
        self,
        margin: float = 0.4,
        h: float = 0.333,
        scale: float = 64.0,
        t_alpha: float = 0.01,
        *,
        epsilon: float = 1e-3,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "adaface",
    ):
        super().__init__(
            scale=scale, label_smoothing=label_smoothing, reduction=reduction, name=name
        )
        _check_margins(1.0, margin, 0.0, scale, "exact")
        if not h > 0:
            raise ValueError(f"h must be greater than 0. Received: h={h}")
        if not 0 <= t_alpha <= 1:
            raise ValueError(f"t_alpha must be in [0, 1]. Received: t_alpha={t_alpha}")
        if not 0 < epsilon < 1:
            raise ValueError(f"epsilon must be in (0, 1). Received: epsilon={epsilon}")
        self.margin = float(margin)
        self.h = float(h)
        self.t_alpha = float(t_alpha)
        self.epsilon = float(epsilon)

    def initial_state(self) -> dict[str, float]:
        """Return the authors' first guess, μ = 20 and σ = 100."""
        return {"norm_mean": 20.0, "norm_std": 100.0}

    def next_state(self, state: Mapping[str, Any], cosine, labels, norms=None) -> dict[str, Any]:
        """Return the new μ and σ, given the old ones and a batch's norms, shape (batch,)."""
        norms = ops.clip(self._check_norms(norms), 1e-3, 100.0)
        count = ops.cast(ops.shape(norms)[0], "float32")
        mean = ops.mean(norms)
        variance = ops.sum(ops.square(norms - mean)) / ops.maximum(count - 1.0, 1.0)
        share = ops.where(count > 1.0, self.t_alpha, 0.0)
        return {
            key: share * value + (1.0 - share) * state[key]
            for key, value in (("norm_mean", mean), ("norm_std", ops.sqrt(variance)))
        }

    def logits(self, cosine, labels, state: Mapping[str, Any], norms=None):
        """Return the logits under given statistics of the norms.

        Args:
            cosine: Cosines, shape (batch, classes).
            labels: Ids, shape (batch,) or (batch, 1), or masses, shape (batch, classes).
            state: ``{"norm_mean": μ, "norm_std": σ}``.
            norms: Norms of the embeddings, shape (batch,) or (batch, 1).

        Returns:
            Logits, shape (batch, classes), float32.
        """
        norms = ops.expand_dims(ops.clip(self._check_norms(norms), 1e-3, 100.0), axis=-1)
        quality = (norms - state["norm_mean"]) / (state["norm_std"] + self.epsilon)
        margin = self.margin * ops.clip(self.h * quality, -1.0, 1.0)
        limit = 1.0 - self.epsilon
        cosine = ops.clip(_as_cosine(cosine), -limit, limit)

        def target(value):
            angle = ops.clip(_angle(value) - margin, self.epsilon, math.pi - self.epsilon)
            return ops.cos(angle) - (self.margin + margin)

        return self.scale * _on_target(cosine, _Labels(labels, cosine), target)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "margin": self.margin,
            "h": self.h,
            "t_alpha": self.t_alpha,
            "epsilon": self.epsilon,
        }
