"""Margin softmax losses for face recognition."""

from keras_hybrid.losses.margin import (
    AdaFace,
    AdaptiveMarginLoss,
    ArcFace,
    CombinedMargin,
    CosFace,
    CurricularFace,
    MarginState,
    SphereFace,
    apply_margin,
)

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
