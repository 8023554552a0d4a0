"""MobileNetV2: inverted residuals with linear bottlenecks, the small CNN hybrids are compared with.

Paper: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"
(arXiv:1801.04381), Table 2. Padding (alike on all sides), ε 1e-5, momentum and initialisation are
those of timm's ``mobilenetv2_100``, to which outputs are tested; the authors' release pads as
TensorFlow does, with ε 1e-3, on images in [−1, 1]. That is also the network of
``keras.applications``, and ``weights="imagenet"`` (or ``keras_trunk=True``) builds it so. Dropout
before the classifier is the release's.
"""

import re
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import IMAGENET_MEAN, IMAGENET_STD, build_model, image_input
from keras_hybrid.applications.convolution import (
    EPSILON,
    check_rows,
    conv_norm,
    he_normal,
    inverted_residual,
)
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.imagenet import ImageNetWeights, keras_form
from keras_hybrid.applications.registry import ModelInfo, register_model

__all__ = ["MobileNetV2"]

PAPER = "Sandler et al. 2018, arXiv:1801.04381"

# Expansion, channels, repeats, stride of the first: the paper's Table 2.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# For which Keras has weights.
KERAS_WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
KERAS_SIZES = (96, 128, 160, 192, 224)


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, but never less than 90 % of what was asked for."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def MobileNetV2(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "mobilenet_v2",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    width: float = 1.0,
    stem_channels: int = 32,
    stages: Sequence[Sequence[int]] = STAGES,
    head_channels: int = 1280,
    dropout: float = 0.2,
    keras_trunk: bool | None = None,
) -> keras.Model:
    """Build a MobileNetV2.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, ``"imagenet"``, or the path of a .weights.h5 or .keras file. ImageNet's
            are Keras's, trained at the images' size if that is 96, 128, 160 or 192, else at 224;
            the classifier's only for 1000 classes, dense, on the mean.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); default (224, 224, 3).
        pooling: Without top: ``None`` for the last map (batch, height, width, head channels),
            ``"avg"`` or ``"max"`` over it, ``"native"`` for its average, the embedding.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ImageNet's mean and standard deviation, or to [−1, 1] with ``keras_trunk``. ``False``:
            already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        width: Factor on all channels (the paper's α), rounded to multiples of 8; the head's are
            never made fewer.
        stem_channels: Of the first convolution.
        stages: For each stage (expansion, channels, repeats, stride of its first block); an
            expansion of 1 is left out.
        head_channels: Of the last map.
        dropout: Rate before the classifier.
        keras_trunk: Whether padding, ε and normalisation are those of ``keras.applications``;
            ``None``: if its weights are asked for. Say so when you load such weights from a file.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    if width <= 0:
        raise ValueError(f"width must be positive, got {width}.")
    check_rows(stages, ("expansion", "channels", "repeats", "stride"))
    keras_trunk = keras_form(weights, keras_trunk)
    inputs, x = image_input(
        input_tensor,
        input_shape,
        (224, 224, 3),
        include_preprocessing=include_preprocessing,
        mean=127.5 if keras_trunk else IMAGENET_MEAN,
        std=127.5 if keras_trunk else IMAGENET_STD,
    )
    size = x.shape[1] if x.shape[1] == x.shape[2] and x.shape[1] in KERAS_SIZES else 224
    colours = x.shape[-1]
    common = {
        "initializer": he_normal(),
        "activation": "relu6",
        "epsilon": 1e-3 if keras_trunk else EPSILON,
        "keras_padding": keras_trunk,
    }
    x = conv_norm(x, _rounded(stem_channels * width), 3, strides=2, name="stem", **common)
    total_stride = 2
    for stage, (expansion, channels, repeats, stride) in enumerate(stages):
        if stride > 1:
            x = endpoint(x, total_stride)
            total_stride *= stride
        for i in range(repeats):
            x = inverted_residual(
                x,
                None if expansion == 1 else x.shape[-1] * expansion,
                _rounded(channels * width),
                strides=stride if i == 0 else 1,
                name=f"stage{stage}_block{i}",
                **common,
            )
    x = conv_norm(x, _rounded(head_channels * max(1.0, width)), 1, name="head", **common)
    x = endpoint(x, total_stride)

    def pooled():
        y = keras.layers.GlobalAveragePooling2D(name="average_pooling")(x)
        return keras.layers.Dropout(dropout, name="head_dropout")(y) if dropout else y

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
        embedding_dim=embedding_dim,
        imagenet=ImageNetWeights(
            "MobileNetV2",
            fits=(
                tuple(map(tuple, stages)) == STAGES
                and (stem_channels, head_channels, colours) == (32, 1280, 3)
                and width in KERAS_WIDTHS
            ),
            needs=(
                "default stem_channels, stages and head_channels, 3 colours, a width of "
                f"{KERAS_WIDTHS}"
            ),
            layer=_keras_name,
            classifier=embedding_dim is None,
            arguments={"alpha": width, "input_shape": (size, size, 3)},
        ),
    )


def _keras_name(name: str) -> str | None:
    """Return what ``keras.applications`` calls a layer of the trunk with the paper's stages."""
    names = {
        "stem_conv": "Conv1",
        "stem_norm": "bn_Conv1",
        "head_conv": "Conv_1",
        "head_norm": "Conv_1_bn",
    }
    match = re.fullmatch(r"stage(\d+)_block(\d+)_(expand|depthwise|project)_(conv|norm)", name)
    if match is None:
        return names.get(name)
    number = sum(stage[2] for stage in STAGES[: int(match[1])]) + int(match[2])
    block = f"block_{number}" if number else "expanded_conv"
    return f"{block}_{match[3]}{'_BN' if match[4] == 'norm' else ''}"


register_model(
    MobileNetV2,
    ModelInfo(
        name="mobilenet_v2",
        family="mobilenet_v2",
        paper=PAPER,
        input_shape=(224, 224, 3),
        classes=1000,
        classifier="dense",
        parameters=3_538_984,
        macs=300_774_272,
    ),
)
