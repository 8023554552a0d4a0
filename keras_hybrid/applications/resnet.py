"""ResNet-50 and SE-ResNet-50: the convolutional network that several hybrids are built on.

Papers: He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), and Hu et
al. 2018, "Squeeze-and-Excitation Networks" (arXiv:1709.01507). We follow what everybody calls
ResNet-50 today ("v1.5"): a bottleneck's stride sits in its 3×3 convolution, where the paper has it
in the first 1×1 (``stride_in_first=True``). The CIFAR stem is the usual one, a 3×3 convolution
without pooling; the paper's own CIFAR networks have other blocks. Outputs are tested against timm's
``resnet50`` and ``seresnet50``, against the released SE-ResNet-50 (timm's ``legacy_seresnet50``:
``stride_in_first=True, ceil_pooling=True``) and pytorch-cifar's ``ResNet50``.

``keras.applications.ResNet50`` has the stride in the first convolution, takes images less a mean,
and has biases that a normalisation follows. ``weights="imagenet"`` (or ``keras_trunk=True``) builds
the trunk so, and takes the biases, the ε and Keras's order of colours into the weights around
them, which leaves features exactly as they are. Keras ships no SE-ResNet.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import keras

from keras_hybrid.applications.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_model,
    image_input,
)
from keras_hybrid.applications.convolution import he_normal, squeeze_excitation
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.imagenet import ImageNetWeights, Weights, keras_form
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.layers.channels_last import Conv2D, MaxPooling2D
from keras_hybrid.layers.normalization import BatchNormalization

__all__ = ["ResNet"]

PAPER = "He et al. 2016, arXiv:1512.03385"
SE_PAPER = "Hu et al. 2018, arXiv:1709.01507"
STEMS = {"imagenet": 4, "cifar": 1}  # and the stride of the map that each hands on
DEPTHS = (3, 4, 6, 3)
WIDTHS = (64, 128, 256, 512)
EPSILON = 1e-5
EXPANSION = 4  # output channels of a bottleneck over its width
# pytorch-cifar's statistics of CIFAR-10, in units of [0, 255].
CIFAR_MEAN = (0.4914 * 255, 0.4822 * 255, 0.4465 * 255)
CIFAR_STD = (0.2023 * 255, 0.1994 * 255, 0.2010 * 255)
# What keras.applications subtracts (it does not divide), red first, and its ε.
KERAS_MEAN = (123.68, 116.779, 103.939)
KERAS_EPSILON = 1.001e-5


@dataclasses.dataclass(frozen=True)
class ResNetVariant:
    """What makes a registered model, and its numbers."""

    paper: str
    arguments: dict
    image_size: int
    classes: int
    parameters: int
    macs: int


VARIANTS = {
    "resnet50": ResNetVariant(PAPER, {}, 224, 1000, 25_610_152, 4_089_184_256),
    "resnet50_cifar": ResNetVariant(PAPER, {"stem": "cifar"}, 32, 10, 23_573_962, 1_297_829_888),
    "se_resnet50": ResNetVariant(
        SE_PAPER, {"squeeze_reduction": 16}, 224, 1000, 28_141_144, 4_091_699_200
    ),
}


def convolution(x, channels: int, kernel_size: int, *, strides: int = 1, name: str):
    """Apply a convolution without bias, padded alike on all sides, and batch normalisation."""
    if strides > 1 and kernel_size > 1:
        x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_padding")(x)
    x = Conv2D(
        channels,
        kernel_size,
        strides=strides,
        padding="valid" if strides > 1 else "same",
        use_bias=False,
        kernel_initializer=he_normal(),
        name=name,
    )(x)
    return normalization(x, f"{name}_norm")


def normalization(x, name: str):
    """Apply batch normalisation with PyTorch's numbers."""
    return BatchNormalization(epsilon=EPSILON, momentum=0.9, name=name)(x)


def bottleneck(
    x,
    width: int,
    *,
    strides: int = 1,
    stride_in_first: bool = False,
    squeeze_reduction: int | None = None,
    spatial: Callable | None = None,
    name: str,
):
    """A residual block: ReLU(x + [1×1, 3×3, 1×1 convolutions, each batch-normalised]).

    Args:
        x: Map, shape (batch, height, width, channels).
        width: Channels of the 3×3 convolution; the block's output has four times as many.
        strides: Of the block.
        stride_in_first: Whether the first 1×1 convolution has the stride, not the 3×3 one.
        squeeze_reduction: ``None``, or channels over hidden width of squeeze-and-excitation before
            the addition.
        spatial: ``None``, or a function (map, strides) → map in place of the 3×3 convolution and
            its normalisation.
        name: Prefix of the layers' names.
    """
    first, second = (strides, 1) if stride_in_first else (1, strides)
    y = convolution(x, width, 1, strides=first, name=f"{name}_conv1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(y)
    if spatial is None:
        y = convolution(y, width, 3, strides=second, name=f"{name}_conv2")
    else:
        y = spatial(y, second)
    y = keras.layers.ReLU(name=f"{name}_relu2")(y)
    y = convolution(y, EXPANSION * width, 1, name=f"{name}_conv3")
    if squeeze_reduction is not None:
        y = squeeze_excitation(
            y,
            max(1, y.shape[-1] // squeeze_reduction),
            initializer=he_normal(),
            name=f"{name}_squeeze",
        )
    if strides > 1 or x.shape[-1] != y.shape[-1]:
        x = convolution(x, y.shape[-1], 1, strides=strides, name=f"{name}_shortcut")
    x = keras.layers.Add(name=f"{name}_add")([x, y])
    return keras.layers.ReLU(name=f"{name}_relu3")(x)


def stem_layers(x, stem: str, channels: int, ceil_pooling: bool = False):
    """From the image to the first stage: to a quarter of its size, or ("cifar") at full size."""
    if stem == "cifar":
        x = convolution(x, channels, 3, name="stem_conv")
        return keras.layers.ReLU(name="stem_relu")(x)
    x = convolution(x, channels, 7, strides=2, name="stem_conv")
    x = endpoint(keras.layers.ReLU(name="stem_relu")(x), 2)
    # After a ReLU padding with zeros equals padding with minus infinity.
    padding = tuple((0, 1 - n % 2) for n in x.shape[1:3]) if ceil_pooling else 1
    x = keras.layers.ZeroPadding2D(padding, name="stem_pool_padding")(x)
    return MaxPooling2D(3, strides=2, name="stem_pool")(x)


def residual_stages(
    x,
    depths: Sequence[int],
    widths: Sequence[int],
    stride: int,
    block: Callable = bottleneck,
    **options,
):
    """Stages of bottlenecks, all but the first beginning with a stride of 2.

    Each map but the last is marked as an endpoint.

    Args:
        x: Map, shape (batch, height, width, channels).
        depths: Blocks of each stage.
        widths: Width of each stage's bottlenecks.
        stride: Of ``x``, in pixels of the image.
        block: `bottleneck`, or a function with its arguments.
        **options: Further arguments of ``block``.

    Returns:
        The map after each stage, a list.
    """
    maps = []
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
        for i in range(depth):
            strides = 2 if i == 0 and stage > 1 else 1
            name = f"stage{stage}_block{i}"
            x = block(x, width, strides=strides, name=name, **options)
        if stage < len(depths):
            x = endpoint(x, stride * 2 ** (stage - 1))
        maps.append(x)
    return maps


def check_stages(stem: str, depths: Sequence[int], widths: Sequence[int]) -> None:
    """Raise ValueError unless the stem is known and every stage has a depth and a width."""
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {tuple(STEMS)}, got {stem!r}.")
    if len(depths) != len(widths) or not depths or min(depths) < 1:
        raise ValueError(
            "depths and widths must have one positive integer for each stage, got "
            f"depths={tuple(depths)} and widths={tuple(widths)}."
        )


def stem_input(
    input_tensor, input_shape, stem: str, include_preprocessing: bool, keras_trunk: bool = False
):
    """Return `image_input` with the size and the normalisation that belong to a stem."""
    cifar = stem == "cifar"
    mean, std = (CIFAR_MEAN, CIFAR_STD) if cifar else (IMAGENET_MEAN, IMAGENET_STD)
    if keras_trunk:
        mean, std = KERAS_MEAN, (1.0, 1.0, 1.0)
    return image_input(
        input_tensor,
        input_shape,
        (32, 32, 3) if cifar else (224, 224, 3),
        include_preprocessing=include_preprocessing,
        mean=mean,
        std=std,
    )


def imagenet_weights(
    image,
    stem: str,
    stem_channels: int,
    depths: Sequence[int],
    widths: Sequence[int],
    *,
    plain: bool = True,
    classifier: bool = False,
) -> ImageNetWeights:
    """Return what ``weights="imagenet"`` means for a stem and the first stages of ResNet-50.

    Args:
        image: The stem's input.
        stem: Its kind.
        stem_channels: Its channels.
        depths: Blocks of the stages that are ResNet-50's; layers of later ones are left alone.
        widths: Widths of these stages.
        plain: Whether nothing else makes the blocks differ.
        classifier: Whether the model classifies the average of the fourth stage.
    """

    def layer(name: str) -> str | None:
        if name in ("stem_conv", "stem_conv_norm"):
            return "conv1_bn" if name.endswith("norm") else "conv1_conv"
        match = re.fullmatch(r"stage(\d)_block(\d)_(?:conv(\d)|shortcut)(_norm)?", name)
        if match is None or int(match[1]) > len(depths):
            return None
        kind = "bn" if match[4] else "conv"
        return f"conv{int(match[1]) + 1}_block{int(match[2]) + 1}_{match[3] or 0}_{kind}"

    return ImageNetWeights(
        "ResNet50",
        fits=(
            plain
            and (stem, stem_channels, image.shape[-1]) == ("imagenet", 64, 3)
            and tuple(depths) == DEPTHS[: len(depths)]
            and tuple(widths) == WIDTHS[: len(widths)]
        ),
        needs=(
            "stem='imagenet', 3 colours, default stem_channels, depths and widths, no "
            "squeeze-and-excitation, no ceil_pooling"
        ),
        layer=layer,
        classifier=classifier and len(depths) == len(DEPTHS),
        adapt=_without_biases,
    )


def _without_biases(values: Weights) -> Weights:
    """Take biases and ε into the normalisation that follows, and the order of colours into conv1.

    Normalising x + b with the mean m is normalising x with m − b.
    """
    values = dict(values)
    for name in [name for name in values if name.endswith("_conv")]:
        kernel, bias = values[name]
        if name == "conv1_conv":  # Keras's colours are blue first
            kernel = kernel[:, :, ::-1]
        following = f"{name.removesuffix('conv')}bn"
        gamma, beta, mean, variance = values[following]
        values[name] = [kernel]
        values[following] = [gamma, beta, mean - bias, variance + (KERAS_EPSILON - EPSILON)]
    return values


def ResNet(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "resnet",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    stem: str = "imagenet",
    stem_channels: int = 64,
    depths: Sequence[int] = DEPTHS,
    widths: Sequence[int] = WIDTHS,
    squeeze_reduction: int | None = None,
    stride_in_first: bool = False,
    ceil_pooling: bool = False,
    keras_trunk: bool | None = None,
) -> keras.Model:
    """Build a residual network of bottlenecks, with or without squeeze-and-excitation.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, ``"imagenet"`` for Keras's of ResNet-50 (the classifier's only for 1000
            classes, dense, on the mean), or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); default (224, 224, 3), or (32, 32, 3) for the CIFAR
            stem.
        pooling: Without top: ``None`` for the last map (batch, height, width, channels), ``"avg"``
            or ``"max"`` over it, ``"native"`` for the average, which the classifier sees.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ImageNet's statistics, or CIFAR-10's for the CIFAR stem; with ``keras_trunk`` less
            ``KERAS_MEAN``. ``False``: already normalised, red first in any case.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        stem: ``"imagenet"``: 7×7 convolution of stride 2 and max pooling. ``"cifar"``: 3×3
            convolution, no pooling.
        stem_channels: Channels of the stem.
        depths: Blocks of each stage.
        widths: Width of each stage's bottlenecks; their output has four times as many channels.
        squeeze_reduction: ``None``, or the r of squeeze-and-excitation.
        stride_in_first: Whether a bottleneck's stride sits in its first 1×1 convolution, as in the
            papers, not in the 3×3 one.
        ceil_pooling: Whether the stem's max pooling is padded at the bottom and right only, and
            only where its last window overhangs, as in the released SE-ResNet-50.
        keras_trunk: Whether stride and normalisation are those of ``keras.applications``; ``None``:
            if its weights are asked for. Say so when you load such weights from a file.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    check_stages(stem, depths, widths)
    keras_trunk = keras_form(weights, keras_trunk)
    inputs, image = stem_input(input_tensor, input_shape, stem, include_preprocessing, keras_trunk)
    x = stem_layers(image, stem, stem_channels, ceil_pooling)
    x = residual_stages(
        x,
        depths,
        widths,
        STEMS[stem],
        stride_in_first=stride_in_first or keras_trunk,
        squeeze_reduction=squeeze_reduction,
    )[-1]
    x = endpoint(x, STEMS[stem] * 2 ** (len(depths) - 1))
    return build_model(
        inputs,
        x,
        lambda: keras.layers.GlobalAveragePooling2D(name="pool")(x),
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier=classifier,
        classifier_activation=classifier_activation,
        weights=weights,
        name=name,
        embedding_dim=embedding_dim,
        imagenet=imagenet_weights(
            image,
            stem,
            stem_channels,
            depths,
            widths,
            plain=squeeze_reduction is None and not ceil_pooling,
            classifier=embedding_dim is None,
        ),
    )


for _name, _variant in VARIANTS.items():
    _shape = (_variant.image_size, _variant.image_size, 3)
    register_model(
        ResNet,
        ModelInfo(
            name=_name,
            family="resnet",
            paper=_variant.paper,
            input_shape=_shape,
            classes=_variant.classes,
            classifier="dense",
            parameters=_variant.parameters,
            macs=_variant.macs,
        ),
        input_shape=_shape,
        classes=_variant.classes,
        **_variant.arguments,
    )
