"""Astroformer: CoAtNet with attention in the last stage only.

Paper: Dagli 2023, "Astroformer: More Data Might not be all you need for Classification"
(arXiv:2304.05350). Blocks, head and normalisation are those of ``coatnet.py``, as in the author's
code, to which outputs are tested.

``astroformer_0_32`` is ours: Astroformer-0 for images of 32 × 32, with CoAtNet's stem that does not
halve (see there). Attention has 2 × 2 tokens.
"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import hands_on_to
from keras_hybrid.applications.coatnet import CoAtNet
from keras_hybrid.applications.registry import ModelInfo, register_model

__all__ = ["Astroformer"]

PAPER = "Dagli 2023, arXiv:2304.05350"
STAGES = ("convolution", "convolution", "convolution", "attention")


@dataclasses.dataclass(frozen=True)
class AstroformerVariant:
    """A size of the author's code."""

    stem_width: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    parameters: int
    macs: int
    image_size: int = 224
    classes: int = 1000
    stem_stride: int = 2
    ours: bool = False


VARIANTS = {
    "astroformer_0": AstroformerVariant(
        64, (96, 192, 384, 768), (2, 3, 5, 2), 23_581_464, 3_994_942_464
    ),
    "astroformer_0_32": AstroformerVariant(
        64,
        (96, 192, 384, 768),
        (2, 3, 5, 2),
        22_881_684,
        327_711_744,
        image_size=32,
        classes=100,
        stem_stride=1,
        ours=True,
    ),
    "astroformer_1": AstroformerVariant(
        64, (96, 192, 384, 768), (2, 6, 14, 2), 38_269_896, 6_812_992_512
    ),
    "astroformer_2": AstroformerVariant(
        128, (128, 256, 512, 1024), (2, 6, 14, 2), 67_542_632, 13_339_619_328
    ),
    "astroformer_3": AstroformerVariant(
        192, (192, 384, 768, 1536), (2, 6, 14, 2), 150_649_768, 29_881_362_432
    ),
}


@hands_on_to(CoAtNet, stages=STAGES)
def Astroformer(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "astroformer",
    **architecture,
) -> keras.Model:
    """Build an Astroformer; the defaults are Astroformer-0.

    Arguments as ``CoAtNet``, but ``stages`` has one stage of attention, the last.
    """
    return CoAtNet(
        include_top,
        weights,
        input_tensor,
        input_shape,
        pooling,
        classes,
        classifier_activation,
        include_preprocessing,
        name,
        **{"stages": STAGES, **architecture},
    )


for _name, _variant in VARIANTS.items():
    _shape = (_variant.image_size, _variant.image_size, 3)
    register_model(
        Astroformer,
        ModelInfo(
            name=_name,
            family="astroformer",
            paper=PAPER,
            input_shape=_shape,
            classes=_variant.classes,
            classifier="dense",
            parameters=_variant.parameters,
            macs=_variant.macs,
            ours=_variant.ours,
        ),
        input_shape=_shape,
        classes=_variant.classes,
        stem_width=_variant.stem_width,
        stem_stride=_variant.stem_stride,
        dims=_variant.dims,
        depths=_variant.depths,
        hidden_dim=_variant.dims[-1],
    )
