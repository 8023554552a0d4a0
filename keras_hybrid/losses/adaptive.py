"""Margin losses that keep a state from batch to batch: `CurricularFace` and `AdaFace`."""

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import ops

from keras_hybrid.losses.base import (
    Labels,
    MarginSoftmax,
    angle_of,
    angular_target,
    as_cosine,
    check_margins,
    cross_entropy,
    on_target,
    register,
)

__all__ = ["AdaFace", "AdaptiveMarginLoss", "CurricularFace", "MarginState"]


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


class AdaptiveMarginLoss(MarginSoftmax):
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
        return cross_entropy(logits, Labels(y_true, y_pred), self.label_smoothing)

    def _check_norms(self, norms):
        if norms is None:
            raise ValueError(
                f"{type(self).__name__} needs the norms of the embeddings, shape (batch,). "
                "Received: norms=None"
            )
        norms = ops.cast(ops.convert_to_tensor(norms), "float32")
        return ops.stop_gradient(ops.reshape(norms, (-1,)))


@register
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
        check_margins(1.0, margin, 0.0, scale, "exact", "margin")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1]. Received: momentum={momentum}")
        self.margin = float(margin)
        self.momentum = float(momentum)

    def initial_state(self) -> dict[str, float]:
        """Return t = 0: hard negatives are first played down."""
        return {"curriculum_t": 0.0}

    def next_state(self, state: Mapping[str, Any], cosine, labels, norms=None) -> dict[str, Any]:
        """Return the new t, given the old one and a batch."""
        cosine = as_cosine(cosine)
        mean = ops.mean(Labels(labels, cosine).pick(cosine))
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
        cosine = as_cosine(cosine)
        labels = Labels(labels, cosine)
        t = ops.cast(state["curriculum_t"], "float32")
        bound = angular_target(labels.pick(cosine), 1.0, self.margin, False, False)
        negatives = ops.where(cosine > bound, cosine * (t + cosine), cosine)
        targets = on_target(
            cosine, labels, lambda value: angular_target(value, 1.0, self.margin, True, False)
        )
        if labels.mask is None:
            return self.scale * (targets + (1.0 - labels.mass) * (negatives - cosine))
        return self.scale * ops.where(labels.mask, targets, negatives)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "margin": self.margin, "momentum": self.momentum}


@register
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
        check_margins(1.0, margin, 0.0, scale, "exact", "margin")
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
        share = self.t_alpha * ops.cast(count > 1.0, "float32")
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
        cosine = ops.clip(as_cosine(cosine), -limit, limit)

        def target(value):
            angle = ops.clip(angle_of(value) - margin, self.epsilon, math.pi - self.epsilon)
            return ops.cos(angle) - (self.margin + margin)

        return self.scale * on_target(cosine, Labels(labels, cosine), target)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "margin": self.margin,
            "h": self.h,
            "t_alpha": self.t_alpha,
            "epsilon": self.epsilon,
        }
