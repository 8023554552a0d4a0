"""Margin softmax losses for face recognition, on cosines.

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

from keras_hybrid.losses.adaptive import AdaFace, AdaptiveMarginLoss, CurricularFace, MarginState
from keras_hybrid.losses.margin import ArcFace, CombinedMargin, CosFace, SphereFace, apply_margin

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
