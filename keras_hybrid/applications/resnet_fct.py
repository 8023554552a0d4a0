"""ResNet-FCT: a ResNet-50 whose intermediate maps attend, each told what the whole image is.

Paper: Mensah et al., "Learning to Pay Multiple Attention with Fully Convolutional Transformers". No
code was published and the text leaves much open, so this is a reconstruction:

- The backbone is the CIFAR ResNet-50 of ``resnet.py``; maps are tapped after stages 1, 2 and 3.
- g, the global descriptor, is the average of the last map. "Assuming equal dimensions" (section
  3.2): g is projected to the map's channels without bias, and added at every place (eq. 7).
  ``project="local"`` projects the map to g's width instead, as the public implementations of Jetley
  et al. 2018 do; the projection's parameters are as many, its map is 2048 channels wide.
- Patches are a 3×3 convolution of stride 2 to 256 channels; 8 heads, which are concatenated without
  a linear layer (eq. 4); the norm stands after each of the three depthwise convolutions (section
  3.3), batch normalisation by default, which the paper found slightly better.
- The averages of the modules' outputs are concatenated (768 numbers) and classified.
"""

import dataclasses
from collections.abc import Sequence

import keras
from keras import ops

from keras_hybrid.applications.base import build_model
from keras_hybrid.applications.convolution import he_normal
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.imagenet import keras_form
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.applications.resnet import (
    DEPTHS,
    STEMS,
    WIDTHS,
    check_stages,
    imagenet_weights,
    residual_stages,
    stem_input,
    stem_layers,
)
from keras_hybrid.layers.channels_last import Conv2D
from keras_hybrid.layers.fully_convolutional import FullyConvolutionalTransformer

__all__ = ["ResNetFCT"]

PAPER = "Mensah et al., Learning to Pay Multiple Attention with Fully Convolutional Transformers"
PROJECTIONS = ("global", "local")


@dataclasses.dataclass(frozen=True)
class ResNetFCTVariant:
    """A row of the paper's table: the norm, and the numbers."""

    normalization: str
    parameters: int
    macs: int


VARIANTS = {
    "resnet50_fct": ResNetFCTVariant("batch", 33_163_978, 1_802_014_208),
    "resnet50_fct_ln": ResNetFCTVariant("layer", 33_157_834, 1_802_014_208),
}


def add_descriptor(x, descriptor, project: str, name: str):
    """Add the global descriptor to a map at every place, in the map's width or in its own."""
    width = descriptor.shape[-1]
    if project == "local":
        x = Conv2D(
            width,
            1,
            use_bias=False,
            kernel_initializer=he_normal("fan_in"),
            name=f"{name}_projection",
        )(x)
    else:
        width = x.shape[-1]
        descriptor = keras.layers.Dense(
            width, use_bias=False, kernel_initializer=he_normal("fan_in"), name=f"{name}_projection"
        )(descriptor)
    descriptor = keras.layers.Reshape((1, 1, width), name=f"{name}_descriptor")(descriptor)
    return keras.layers.Add(name=f"{name}_sum")([x, descriptor])


def patch_embedding(x, channels: int, name: str):
    """Overlapping patches: a 3×3 convolution of stride 2, padded alike on all sides."""
    x = keras.layers.ZeroPadding2D(1, name=f"{name}_padding")(x)
    return Conv2D(
        channels, 3, strides=2, kernel_initializer=he_normal("fan_in"), name=f"{name}_patches"
    )(x)


def segment_means(tokens, lengths: Sequence[int]):
    """Average each run of tokens and put the averages side by side."""
    means, start = [], 0
    for length in lengths:
        means.append(ops.mean(tokens[:, start : start + length, :], axis=1))
        start += length
    return ops.concatenate(means, axis=-1)


def ResNetFCT(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 10,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "resnet_fct",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    stem: str = "cifar",
    stem_channels: int = 64,
    depths: Sequence[int] = DEPTHS,
    widths: Sequence[int] = WIDTHS,
    taps: Sequence[int] = (1, 2, 3),
    project: str = "global",
    dim: int = 256,
    num_heads: int = 8,
    normalization: str = "batch",
    attention_dropout: float = 0.0,
    dropout: float = 0.0,
    keras_trunk: bool | None = None,
) -> keras.Model:
    """Build a residual network with fully convolutional transformers on its intermediate maps.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, ``"imagenet"`` for Keras's of ResNet-50 in the backbone (with
            ``stem="imagenet"``), or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); default (32, 32, 3), or (224, 224, 3) for the
            ImageNet stem.
        pooling: Without top: ``None`` for the cells of all modules' maps, one map after the other
            (batch, tokens, dim), ``"avg"`` or ``"max"`` over them, ``"native"`` for the average of
            each map, side by side.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            CIFAR-10's statistics, or ImageNet's for the ImageNet stem, or as ``keras_trunk`` says.
            ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        stem: ``"cifar"``: 3×3 convolution, no pooling. ``"imagenet"``: 7×7 convolution of stride 2
            and max pooling.
        stem_channels: Channels of the stem.
        depths: Blocks of each stage.
        widths: Width of each stage's bottlenecks; their output has four times as many channels.
        taps: Stages, counted from 1, after which a module taps the map.
        project: ``"global"``: the descriptor is projected to a map's channels; ``"local"``: the map
            to the descriptor's.
        dim: Channels of the modules.
        num_heads: Heads of each module.
        normalization: ``"batch"`` or ``"layer"``, of the modules.
        attention_dropout: Rate on the attention maps.
        dropout: Rate after the focus layers.
        keras_trunk: Whether the trunk is that of ``keras.applications``, as for ``ResNet``;
            ``None``: if its weights are asked for. Say so when you load them from a file.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    check_stages(stem, depths, widths)
    if not taps or not set(taps) <= set(range(1, len(depths) + 1)) or len(set(taps)) < len(taps):
        raise ValueError(f"taps must be distinct stages from 1 to {len(depths)}, got {taps}.")
    if project not in PROJECTIONS:
        raise ValueError(f"project must be one of {PROJECTIONS}, got {project!r}.")
    if dim % num_heads:
        raise ValueError(f"dim={dim} must be a multiple of num_heads={num_heads}.")
    keras_trunk = keras_form(weights, keras_trunk)
    inputs, image = stem_input(input_tensor, input_shape, stem, include_preprocessing, keras_trunk)
    x = stem_layers(image, stem, stem_channels)
    maps = residual_stages(x, depths, widths, STEMS[stem], stride_in_first=keras_trunk)
    maps[-1] = endpoint(maps[-1], STEMS[stem] * 2 ** (len(depths) - 1))
    descriptor = keras.layers.GlobalAveragePooling2D(name="descriptor")(maps[-1])
    tokens = []
    for i, tap in enumerate(taps):
        x = add_descriptor(maps[tap - 1], descriptor, project, f"fct{i}")
        x = patch_embedding(x, dim, f"fct{i}")
        x = FullyConvolutionalTransformer(
            num_heads,
            head_dim=dim // num_heads,
            key_stride=1,
            normalization=normalization,
            linear=False,
            convolution=False,
            dilations=(),
            dropout=dropout,
            attention_dropout=attention_dropout,
            projection_epsilon=None,
            kernel_initializer=he_normal("fan_in"),
            name=f"fct{i}",
        )(x)
        tokens.append(keras.layers.Reshape((-1, dim), name=f"fct{i}_tokens")(x))
    lengths = [t.shape[1] for t in tokens]
    # One tensor for all maps, whatever their number and sizes: include_top=False returns it.
    x = keras.layers.Concatenate(axis=1, name="tokens")(tokens)
    return build_model(
        inputs,
        x,
        lambda: segment_means(x, lengths),
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier=classifier,
        classifier_activation=classifier_activation,
        weights=weights,
        name=name,
        embedding_dim=embedding_dim,
        imagenet=imagenet_weights(image, stem, stem_channels, depths, widths),
    )


for _name, _variant in VARIANTS.items():
    register_model(
        ResNetFCT,
        ModelInfo(
            name=_name,
            family="resnet_fct",
            paper=PAPER,
            input_shape=(32, 32, 3),
            classes=10,
            classifier="dense",
            parameters=_variant.parameters,
            macs=_variant.macs,
            reconstruction=True,
        ),
        normalization=_variant.normalization,
    )
