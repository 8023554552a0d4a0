"""EfficientNet: inverted bottlenecks with squeeze-and-excitation, as classifiers and for faces.

Papers: Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
(arXiv:1905.11946), and Tan and Le 2021, "EfficientNetV2: Smaller Models and Faster Training"
(arXiv:2104.00298), whose early blocks fuse expansion and depthwise convolution into one. Both are
baselines of the report "Towards a robust and EfficientNet Architecture for Face Recognition".
Outputs are tested against EfficientNet-PyTorch (B0 at 112 pixels) and timm's
``tf_efficientnetv2_s``; features also against ``keras.applications``.

Why these networks are not built on ``keras.applications``: its builders refuse images under 32
pixels, its EfficientNetB0 always normalises inside (``include_preprocessing`` could not be
honoured, and seven numbers are weights that are not the paper's), and neither lets the stem's
activation, the stages or squeeze-and-excitation be chosen, which the hybrids need. Layers have its
names instead, so that its ImageNet weights fit, with the normalisation that is the default here:
``weights="imagenet"``.

Choices:

- Strided convolutions pad right and bottom ("same"), as the authors' release does. B0 at 112
  pixels ends in a map of 4 × 4.
- ``efficientnet_b0_face``: a dropout and a linear layer with bias from the mean to 512 numbers.
- ``efficientnet_v2_s_face``: the classifier of the report's code, batch normalisation, linear layer
  with bias, batch normalisation, with 512 numbers. That code starts from torchvision's trunk, which
  pads alike on all sides; we stay with the release, for its weights.
- Sizes are counted at 224 pixels; V2-S is trained at up to 300.

``efficientnet_lite0`` is B0 as its authors released it for phones
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite): without
squeeze-and-excitation, with ReLU6 for swish, because both quantize better, and on (x − 127) / 128.
Its ImageNet weights, 4,652,008 trainable numbers, load from a PyTorch file: ``kh.convert``.
"""

import dataclasses
import re
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import (
    CASIA_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    add_branch,
    build_model,
    image_input,
)
from keras_hybrid.applications.convolution import check_rows, he_normal, squeeze_excitation
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.imagenet import ImageNetWeights
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import VarianceScaling
from keras_hybrid.layers.channels_last import Conv2D, DepthwiseConv2D
from keras_hybrid.layers.normalization import BatchNormalization

__all__ = ["EfficientNet"]

PAPER = "Tan and Le 2019, arXiv:1905.11946"
PAPER_V2 = "Tan and Le 2021, arXiv:2104.00298"
EPSILON = 1e-3
KINDS = ("mbconv", "fused")

# Kind, kernel size, expansion, channels, repeats, stride of the first: Table 1 of the first paper,
B0_STAGES = (
    ("mbconv", 3, 1, 16, 1, 1),
    ("mbconv", 3, 6, 24, 2, 2),
    ("mbconv", 5, 6, 40, 2, 2),
    ("mbconv", 3, 6, 80, 3, 2),
    ("mbconv", 5, 6, 112, 3, 1),
    ("mbconv", 5, 6, 192, 4, 2),
    ("mbconv", 3, 6, 320, 1, 1),
)
# and Table 4 of the second.
V2_S_STAGES = (
    ("fused", 3, 1, 24, 2, 1),
    ("fused", 3, 4, 48, 4, 2),
    ("fused", 3, 4, 64, 4, 2),
    ("mbconv", 3, 4, 128, 6, 2),
    ("mbconv", 3, 6, 160, 9, 1),
    ("mbconv", 3, 6, 256, 15, 2),
)
V2_S = {
    "stem_channels": 24,
    "stages": V2_S_STAGES,
    "momentum": 0.9,
    # The release maps [0, 255] to (x − 128) / 128.
    "pixel_mean": 128.0,
    "pixel_std": 128.0,
}
LITE = {"se_ratio": 0.0, "activation": "relu6", "pixel_mean": 127.0, "pixel_std": 128.0}


@dataclasses.dataclass(frozen=True)
class EfficientNetVariant:
    """What makes a registered model, and its numbers."""

    paper: str
    arguments: dict
    image_size: int
    classes: int
    classifier: str
    parameters: int
    macs: int


VARIANTS = {
    "efficientnet_b0": EfficientNetVariant(PAPER, {}, 224, 1000, "dense", 5_330_564, 385_814_752),
    "efficientnet_b0_face": EfficientNetVariant(
        PAPER, {"embedding_dim": 512}, 112, CASIA_CLASSES, "cosine", 10_118_300, 112_306_512
    ),
    "efficientnet_lite0": EfficientNetVariant(
        PAPER, LITE, 224, 1000, "dense", 4_694_024, 385_187_552
    ),
    "efficientnet_v2_s": EfficientNetVariant(
        PAPER_V2, V2_S, 224, 1000, "dense", 21_612_360, 2_849_895_872
    ),
    "efficientnet_v2_s_face": EfficientNetVariant(
        PAPER_V2,
        {**V2_S, "embedding_dim": 512, "embedding_norm": True, "dropout": 0.0},
        112,
        CASIA_CLASSES,
        "cosine",
        26_407_264,
        765_167_104,
    ),
}


def _normalized(x, *, activation: str | None, momentum: float, name: str):
    x = BatchNormalization(epsilon=EPSILON, momentum=momentum, name=f"{name}_bn")(x)
    if activation is None:
        return x
    return keras.layers.Activation(activation, name=f"{name}_activation")(x)


def conv_bn(
    x, channels: int, kernel_size: int, *, strides=1, activation: str | None, momentum, name: str
):
    """Convolution without bias, batch normalisation, and an activation if there is one."""
    x = Conv2D(
        channels,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer=he_normal(),
        name=f"{name}_conv",
    )(x)
    return _normalized(x, activation=activation, momentum=momentum, name=name)


def inverted_bottleneck(
    x,
    channels: int,
    kernel_size: int,
    *,
    expansion: int,
    strides: int,
    se_ratio: float,
    activation: str,
    momentum: float,
    depthwise_name: str,
    name: str,
):
    """MBConv: expand 1×1, depthwise, squeeze-and-excitation, project 1×1 linearly.

    Squeeze-and-excitation is as narrow as ``se_ratio`` times the channels of the block's input.
    """
    channels_in = x.shape[-1]
    if expansion != 1:
        x = conv_bn(
            x,
            channels_in * expansion,
            1,
            activation=activation,
            momentum=momentum,
            name=f"{name}_expand",
        )
    x = DepthwiseConv2D(
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        depthwise_initializer=he_normal(),
        name=f"{name}_{depthwise_name}",
    )(x)
    x = _normalized(x, activation=activation, momentum=momentum, name=name)
    if se_ratio:
        x = squeeze_excitation(
            x,
            max(1, int(channels_in * se_ratio)),
            initializer=he_normal(),
            activation=activation,
            name=f"{name}_se",
        )
    return conv_bn(x, channels, 1, activation=None, momentum=momentum, name=f"{name}_project")


def fused_bottleneck(
    x,
    channels: int,
    kernel_size: int,
    *,
    expansion: int,
    strides: int,
    activation: str,
    momentum: float,
    name: str,
):
    """Fused-MBConv: expand by a whole convolution, project 1×1; expanding by 1, only the former."""
    common = {"strides": strides, "activation": activation, "momentum": momentum}
    if expansion == 1:
        return conv_bn(x, channels, kernel_size, name=f"{name}_project", **common)
    x = conv_bn(x, x.shape[-1] * expansion, kernel_size, name=f"{name}_expand", **common)
    return conv_bn(x, channels, 1, activation=None, momentum=momentum, name=f"{name}_project")


def check_stages(stages: Sequence[Sequence]) -> None:
    """Raise ValueError unless every stage has what it takes and is of a kind there is."""
    check_rows(stages, ("kind", "kernel size", "expansion", "channels", "repeats", "stride"))
    kinds = {stage[0] for stage in stages}
    if not kinds <= set(KINDS):
        raise ValueError(f"stages must be of the kinds {KINDS}, got {tuple(sorted(kinds))}.")


def _has_fused(stages: Sequence[Sequence]) -> bool:
    return any(stage[0] == "fused" for stage in stages)


def efficientnet_trunk(
    x,
    *,
    stem_channels: int,
    stages: Sequence[Sequence],
    se_ratio: float,
    activation: str,
    stem_activation: str | None,
    momentum: float,
    drop_path: float,
):
    """Stem and stages; returns the last map and its stride.

    Args:
        x: Images, shape (batch, height, width, channels).
        stem_channels: Of the first convolution, which halves the image.
        stages: For each (kind, kernel size, expansion, channels, repeats, stride of the first).
        se_ratio: Hidden width of squeeze-and-excitation over the channels of a block's input.
        activation: A name Keras knows.
        stem_activation: After the stem's normalisation; ``None``: none.
        momentum: Of the batch normalisations.
        drop_path: Rate that rises linearly from 0 and would be reached by one block more.
    """
    check_stages(stages)
    common = {"activation": activation, "momentum": momentum}
    # As keras.applications names it in either version.
    depthwise = {"depthwise_name": "dwconv2" if _has_fused(stages) else "dwconv"}
    x = conv_bn(
        x,
        stem_channels,
        3,
        strides=2,
        activation=stem_activation,
        momentum=momentum,
        name="stem",
    )
    total_stride = 2
    number, count = 0, sum(stage[4] for stage in stages)
    for stage, (kind, kernel_size, expansion, channels, repeats, stride) in enumerate(stages, 1):
        for i in range(repeats):
            name = f"block{stage}{chr(ord('a') + i)}"
            strides = stride if i == 0 else 1
            if strides > 1:
                x = endpoint(x, total_stride)
                total_stride *= strides
            arguments = {"expansion": expansion, "strides": strides, "name": name, **common}
            if kind == "fused":
                y = fused_bottleneck(x, channels, kernel_size, **arguments)
            else:
                arguments |= {"se_ratio": se_ratio, **depthwise}
                y = inverted_bottleneck(x, channels, kernel_size, **arguments)
            if strides == 1 and x.shape[-1] == channels:
                y = add_branch(x, y, drop_path * number / count, name)
            x = y
            number += 1
    return x, total_stride


def EfficientNet(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "efficientnet",
    *,
    classifier: str = "dense",
    centers_per_class: int = 1,
    embedding_dim: int | None = None,
    embedding_norm: bool = False,
    stem_channels: int = 32,
    stages: Sequence[Sequence] = B0_STAGES,
    head_channels: int = 1280,
    se_ratio: float = 0.25,
    activation: str = "swish",
    momentum: float = 0.99,
    dropout: float = 0.2,
    drop_path: float = 0.2,
    pixel_mean: float | Sequence[float] = IMAGENET_MEAN,
    pixel_std: float | Sequence[float] = IMAGENET_STD,
) -> keras.Model:
    """Build an EfficientNet. The defaults are B0.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, ``"imagenet"`` for Keras's of B0 or V2-S (the classifier's only for 1000
            classes, dense, on the mean), or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); default (224, 224, 3).
        pooling: Without top: ``None`` for the last map (batch, height, width, head_channels),
            ``"avg"`` or ``"max"`` over it, ``"native"`` for the embedding.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ``pixel_mean`` and ``pixel_std``. ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        centers_per_class: Sub-centres of the cosine classifier.
        embedding_dim: Width of a linear layer with bias behind the mean; ``None``: the mean is the
            embedding.
        embedding_norm: Whether batch normalisations surround that layer.
        stem_channels: Of the first convolution, which halves the image.
        stages: For each ("mbconv" or "fused", kernel size, expansion, channels, repeats, stride of
            the first block).
        head_channels: Of the last map.
        se_ratio: Hidden width of squeeze-and-excitation in a stage of the kind "mbconv", over the
            channels of a block's input; 0: without.
        activation: A name Keras knows.
        momentum: Of the trunk's batch normalisations; 0.99 in the first release, 0.9 in V2's.
        dropout: Rate on the mean.
        drop_path: Rate on residual branches, rising linearly from 0 towards it.
        pixel_mean: One number or one for each channel, in units of [0, 255].
        pixel_std: Likewise.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32, or to cosθ.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    inputs, image = image_input(
        input_tensor,
        input_shape,
        (224, 224, 3),
        include_preprocessing=include_preprocessing,
        mean=pixel_mean,
        std=pixel_std,
    )
    x, stride = efficientnet_trunk(
        image,
        stem_channels=stem_channels,
        stages=stages,
        se_ratio=se_ratio,
        activation=activation,
        stem_activation=activation,
        momentum=momentum,
        drop_path=drop_path,
    )
    x = conv_bn(x, head_channels, 1, activation=activation, momentum=momentum, name="top")
    x = endpoint(x, stride)

    def pooled():
        y = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        if dropout:
            y = keras.layers.Dropout(dropout, name="top_dropout")(y)
        if embedding_dim is None:
            return y
        if embedding_norm:
            y = _embedding_norm(y, "embedding_input_norm")
        y = keras.layers.Dense(
            embedding_dim,
            kernel_initializer=VarianceScaling(1 / 3, "fan_out", "uniform"),
            name="embedding_projection",
        )(y)
        return _embedding_norm(y, "embedding_norm") if embedding_norm else y

    return build_model(
        inputs,
        x,
        pooled,
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier=classifier,
        classifier_activation=classifier_activation,
        weights=weights,
        name=name,
        centers_per_class=centers_per_class,
        imagenet=imagenet_weights(
            image,
            stem_channels=stem_channels,
            stages=stages,
            se_ratio=se_ratio,
            activation=activation,
            normalization=(pixel_mean, pixel_std) if include_preprocessing else None,
            head_channels=head_channels,
            classifier=embedding_dim is None,
        ),
    )


def imagenet_weights(
    image,
    *,
    stem_channels: int,
    stages: Sequence[Sequence],
    se_ratio: float,
    activation: str,
    normalization: tuple | None,
    head_channels: int | None = None,
    classifier: bool = False,
) -> ImageNetWeights:
    """Return what ``weights="imagenet"`` means for the first stages of B0 or V2-S.

    Args:
        image: The trunk's input.
        stem_channels: As in `efficientnet_trunk`, also the next three.
        stages: All of the network's if there is a head.
        se_ratio: Of squeeze-and-excitation.
        activation: Also the stem's.
        normalization: Mean and standard deviation in the model, or ``None``: none.
        head_channels: Of the head, or ``None``: there is none.
        classifier: Whether the model classifies the average of the head.
    """
    second = _has_fused(stages)
    theirs = V2_S_STAGES if second else B0_STAGES
    statistics = (128.0, 128.0) if second else (IMAGENET_MEAN, IMAGENET_STD)
    depth = len(stages) if head_channels is None else len(theirs)
    return ImageNetWeights(
        "EfficientNetV2S" if second else "EfficientNetB0",
        fits=(
            tuple(map(tuple, stages)) == theirs[:depth]
            and (stem_channels, image.shape[-1]) == (24 if second else 32, 3)
            and (se_ratio, activation, head_channels or 1280) == (0.25, "swish", 1280)
            and normalization in (None, statistics)
        ),
        needs=(
            "its stem, stages, squeeze-and-excitation, swish and head, 3 colours, normalised with "
            f"pixel_mean={statistics[0]} and pixel_std={statistics[1]}"
        ),
        layer=lambda name: name if re.match(r"(stem|block\d[a-z]|top)_", name) else None,
        classifier=classifier,
    )


def _embedding_norm(x, name: str):
    """Batch normalisation with PyTorch's defaults, which the report's head has."""
    return BatchNormalization(epsilon=1e-5, momentum=0.9, name=name)(x)


for _name, _variant in VARIANTS.items():
    _shape = (_variant.image_size, _variant.image_size, 3)
    register_model(
        EfficientNet,
        ModelInfo(
            name=_name,
            family="efficientnet",
            paper=_variant.paper,
            input_shape=_shape,
            classes=_variant.classes,
            classifier=_variant.classifier,
            parameters=_variant.parameters,
            macs=_variant.macs,
        ),
        input_shape=_shape,
        classes=_variant.classes,
        classifier=_variant.classifier,
        **_variant.arguments,
    )
