"""Margin losses whose margin is the same for every sample, and the function behind them."""

from typing import Any

from keras import ops

from keras_hybrid.losses.base import (
    Labels,
    MarginSoftmax,
    angular_target,
    as_cosine,
    check_margins,
    cross_entropy,
    on_target,
    register,
)

__all__ = ["ArcFace", "CombinedMargin", "CosFace", "SphereFace", "apply_margin"]


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
    check_margins(m1, m2, m3, scale, gradient)
    cosine = as_cosine(cosine)
    if fallback is None:
        fallback = gradient == "exact"

    def target(value):
        margined = angular_target(value, m1, m2, fallback, easy_margin) - m3
        if gradient == "straight_through":
            margined = value + ops.stop_gradient(margined - value)
        return margined

    return scale * on_target(cosine, Labels(labels, cosine), target)


class _FixedMargin(MarginSoftmax):
    """A margin loss whose margin is the same for every sample: `apply_margin`, cross-entropy."""

    _margin_name: str | None = "margin"  # of a subclass with one

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
        check_margins(m1, m2, m3, scale, gradient, self._margin_name)
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
        labels = Labels(y_true, y_pred)
        return cross_entropy(self.logits(y_pred, y_true), labels, self.label_smoothing)


@register
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


@register
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


@register
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


@register
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

    _margin_name = None

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
