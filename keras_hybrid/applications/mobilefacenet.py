"""MobileFaceNet: a MobileNetV2 for faces that weighs the last map's positions, not averages them.

Paper: Chen et al. 2018, "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on
Mobile Devices" (arXiv:1804.07573). Its Table 1 with PReLU, inputs (x − 127.5) / 128 and an
embedding of 128 numbers is the default. A global depthwise convolution, as large as the map, takes
the place of average pooling, since a face's corners say less than its middle.

Two published implementations differ and are registered beside it; outputs are tested against both:

- ``mobilefacenet_insightface``: insightface's arcface_torch. Twice the channels between blocks but
  the same hidden ones, a second convolution of 64 groups that each see 2 of its 128 channels, an
  embedding of 512, inputs scaled to [−1, 1].
- ``mobilefacenet_relu6``: foamliu's. ReLU6 (plain ReLU in the stem's second convolution, which a
  1×1 convolution follows), a bias in the last layer, ImageNet's mean and standard deviation.
"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import (
    CASIA_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_model,
    image_input,
)
from keras_hybrid.applications.convolution import (
    batch_norm,
    check_rows,
    conv_norm,
    he_normal,
    inverted_residual,
)
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.layers.channels_last import DepthwiseConv2D

__all__ = ["MobileFaceNet"]

PAPER = "Chen et al. 2018, arXiv:1804.07573"

# Expansion, channels, repeats, stride of the first: the paper's Table 1.
STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
WIDE_STAGES = ((1, 128, 5, 2), (2, 256, 1, 2), (1, 256, 6, 1), (2, 256, 1, 2), (1, 256, 2, 1))


@dataclasses.dataclass(frozen=True)
class MobileFaceNetVariant:
    """What differs from the paper, and what the model then counts."""

    arguments: dict
    parameters: int
    macs: int


VARIANTS = {
    "mobilefacenet": MobileFaceNetVariant({}, 2_375_936, 222_318_592),
    "mobilefacenet_insightface": MobileFaceNetVariant(
        {
            "stem_channels": 128,
            "stem_groups": 64,
            "stages": WIDE_STAGES,
            "embedding_dim": 512,
            "pixel_std": 127.5,
        },
        7_496_192,
        442_933_760,
    ),
    "mobilefacenet_relu6": MobileFaceNetVariant(
        {
            "stem_pointwise": True,
            "activation": "relu6",
            "stem_activation": "relu",
            "embedding_bias": True,
            "pixel_mean": IMAGENET_MEAN,
            "pixel_std": IMAGENET_STD,
        },
        2_372_864,
        235_163_648,
    ),
}


def global_depthwise(x, embedding_dim: int | None, embedding_bias: bool):
    """Weigh every position of every channel, then project: the paper's GDConv and linear 1×1."""
    x = DepthwiseConv2D(
        tuple(x.shape[1:3]),
        padding="valid",
        use_bias=False,
        depthwise_initializer=he_normal(),
        name="global_conv",
    )(x)
    x = batch_norm(x, "global_norm")
    x = keras.layers.Flatten(name="global_flatten")(x)
    if embedding_dim is None:
        return x
    x = keras.layers.Dense(
        embedding_dim,
        use_bias=embedding_bias,
        kernel_initializer=he_normal(),
        name="embedding_projection",
    )(x)
    return batch_norm(x, "embedding_norm")


def MobileFaceNet(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = CASIA_CLASSES,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "mobilefacenet",
    *,
    classifier: str = "cosine",
    centers_per_class: int = 1,
    embedding_dim: int | None = 128,
    embedding_bias: bool = False,
    stem_channels: int = 64,
    stem_groups: int | None = None,
    stem_pointwise: bool = False,
    stages: Sequence[Sequence[int]] = STAGES,
    head_channels: int = 512,
    activation: str = "prelu",
    stem_activation: str | None = None,
    pixel_mean: float | Sequence[float] = 127.5,
    pixel_std: float | Sequence[float] = 128.0,
) -> keras.Model:
    """Build a MobileFaceNet. The defaults are the paper's: a million parameters below the classes.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); default (112, 112, 3).
        pooling: Without top: ``None`` for the last map (batch, height, width, head_channels),
            ``"avg"`` or ``"max"`` over it, ``"native"`` for the embedding.
        classes: Number of identities; the default is cleaned CASIA-WebFace's.
        classifier_activation: Only with ``classifier="dense"``.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ``pixel_mean`` and ``pixel_std``. ``False``: already normalised.
        name: Of the model.
        classifier: ``"cosine"`` (train it with a margin loss) or ``"dense"``.
        centers_per_class: Sub-centres of the cosine classifier.
        embedding_dim: Width of the embedding; ``None`` for the global convolution's output.
        embedding_bias: Whether the projection to it has a bias.
        stem_channels: Of the first two convolutions.
        stem_groups: Of the second convolution, a divisor of its channels; ``None``: as many, a
            depthwise convolution.
        stem_pointwise: Whether a 1×1 convolution follows it.
        stages: For each stage (expansion, channels, repeats, stride of its first block).
        head_channels: Of the last map.
        activation: ``"prelu"`` or a name Keras knows.
        stem_activation: After the second convolution and the 1×1 behind it; ``None``: the same.
        pixel_mean: One number or one for each channel, in units of [0, 255].
        pixel_std: Likewise.

    Returns:
        A Functional model from (batch, height, width, channels) to cosθ (batch, classes), float32
        in [−1, 1].

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    stem_groups = stem_channels if stem_groups is None else stem_groups
    if stem_groups < 1 or stem_channels % stem_groups:
        raise ValueError(
            f"stem_groups must divide stem_channels={stem_channels}, got {stem_groups}."
        )
    check_rows(stages, ("expansion", "channels", "repeats", "stride"))
    inputs, x = image_input(
        input_tensor,
        input_shape,
        (112, 112, 3),
        include_preprocessing=include_preprocessing,
        mean=pixel_mean,
        std=pixel_std,
    )
    common = {"initializer": he_normal(), "activation": activation}
    stem = {**common, "activation": stem_activation or activation}
    x = conv_norm(x, stem_channels, 3, strides=2, name="stem0", **common)
    x = conv_norm(x, stem_channels, 3, groups=stem_groups, name="stem1", **stem)
    if stem_pointwise:
        x = conv_norm(x, stem_channels, 1, name="stem2", **stem)
    blocks = [
        (expansion, channels, stride if i == 0 else 1)
        for expansion, channels, repeats, stride in stages
        for i in range(repeats)
    ]
    total_stride = 2
    for i, (expansion, channels, stride) in enumerate(blocks):
        if stride > 1:
            x = endpoint(x, total_stride)
            total_stride *= stride
        hidden = x.shape[-1] * expansion
        x = inverted_residual(x, hidden, channels, strides=stride, name=f"block{i}", **common)
    x = conv_norm(x, head_channels, 1, name="head", **common)
    x = endpoint(x, total_stride)
    return build_model(
        inputs,
        x,
        lambda: global_depthwise(x, embedding_dim, embedding_bias),
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier=classifier,
        classifier_activation=classifier_activation,
        weights=weights,
        name=name,
        centers_per_class=centers_per_class,
    )


for _name, _variant in VARIANTS.items():
    register_model(
        MobileFaceNet,
        ModelInfo(
            name=_name,
            family="mobilefacenet",
            paper=PAPER,
            input_shape=(112, 112, 3),
            classes=CASIA_CLASSES,
            classifier="cosine",
            parameters=_variant.parameters,
            macs=_variant.macs,
        ),
        **_variant.arguments,
    )
