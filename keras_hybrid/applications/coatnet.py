"""CoAtNet: inverted bottlenecks in the early stages, relative attention in the late ones.

Paper: Dai et al. 2021, "CoAtNet: Marrying Convolution and Attention for All Data Sizes"
(arXiv:2106.04803). The authors published no code; outputs are tested against timm's
``coatnet_0_224``, their layout with these readings: the stride sits in the depthwise convolution,
which pads symmetrically; a halved shortcut is an average over 2 × 2 and a projection; the batch
normalisation that precedes a bottleneck has no activation; squeeze-and-excitation follows the
second normalisation; bottlenecks expand the width of their output; the head has a hidden layer with
a hyperbolic tangent, whose output is the embedding.

Choice: convolutions start as timm's (normal, variance 2 / fan-out), dense layers as those of the
vision transformers.

``coatnet_0_32`` is ours: CoAtNet-0 for images of 32 × 32. Its stem does not halve, so that stages
work at 16 × 16, 8 × 8, 4 × 4 and 2 × 2; with the paper's, the last would have a single token.
"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import (
    add_branch,
    build_model,
    check_counts,
    image_input,
    linear_drop_path,
    mlp,
)
from keras_hybrid.applications.convolution import he_normal, squeeze_excitation
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.attention import MultiHeadSelfAttention
from keras_hybrid.layers.channels_last import Conv2D, DepthwiseConv2D
from keras_hybrid.layers.normalization import BatchNormalization
from keras_hybrid.layers.position import RelativePositionBias

__all__ = ["CoAtNet"]

PAPER = "Dai et al. 2021, arXiv:2106.04803"
STAGES = ("convolution", "attention")


@dataclasses.dataclass(frozen=True)
class CoAtNetVariant:
    """A size of the paper."""

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
    "coatnet_0": CoAtNetVariant(64, (96, 192, 384, 768), (2, 3, 5, 2), 25_050_516, 4_546_507_776),
    "coatnet_0_32": CoAtNetVariant(
        64,
        (96, 192, 384, 768),
        (2, 3, 5, 2),
        24_309_936,
        360_324_096,
        image_size=32,
        classes=100,
        stem_stride=1,
        ours=True,
    ),
}


def _convolution(x, width: int, *, name: str, kernel_size: int = 1, stride=1, use_bias=False):
    padding = "valid" if kernel_size == 1 else "same"
    if stride > 1:
        x = keras.layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_padding")(x)
        padding = "valid"
    return Conv2D(
        width,
        kernel_size,
        strides=stride,
        padding=padding,
        use_bias=use_bias,
        kernel_initializer=he_normal(),
        name=name,
    )(x)


def _batch_norm(x, name: str, activation: str | None = None):
    x = BatchNormalization(epsilon=1e-5, momentum=0.9, name=name)(x)
    return x if activation is None else _activation(x, activation, name)


def _activation(x, activation: str, name: str):
    return keras.layers.Activation(activation, name=f"{name}_{activation}")(x)


def _shortcut(x, width: int, stride: int, name: str):
    if stride > 1:
        x = keras.layers.AveragePooling2D(stride, name=f"{name}_shortcut_pool")(x)
    if x.shape[-1] != width:
        x = _convolution(x, width, use_bias=True, name=f"{name}_shortcut")
    return x


def convolution_block(x, width, *, stride, expansion, se_ratio, drop_path, name):
    """A pre-norm inverted bottleneck with squeeze-and-excitation."""
    shortcut = _shortcut(x, width, stride, name)
    hidden = round(width * expansion)
    x = _batch_norm(x, f"{name}_pre_norm")
    x = _batch_norm(_convolution(x, hidden, name=f"{name}_expand"), f"{name}_norm1", "gelu")
    if stride > 1:
        x = keras.layers.ZeroPadding2D(1, name=f"{name}_depthwise_padding")(x)
    x = DepthwiseConv2D(
        3,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        use_bias=False,
        depthwise_initializer=he_normal(),
        name=f"{name}_depthwise",
    )(x)
    x = _batch_norm(x, f"{name}_norm2", "gelu")
    if se_ratio:
        x = squeeze_excitation(
            x,
            max(1, int(width * se_ratio)),
            initializer=he_normal(),
            activation="silu",
            name=f"{name}_se",
        )
    x = _convolution(x, width, use_bias=True, name=f"{name}_project")
    return add_branch(shortcut, x, drop_path, name)


def attention_block(
    x, width, *, stride, head_dim, mlp_ratio, dropout, attention_dropout, drop_path, epsilon, name
):
    """A pre-norm encoder block on a map, with relative positions."""
    shortcut = _shortcut(x, width, stride, name)
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm1")(x)
    if stride > 1:
        y = keras.layers.AveragePooling2D(stride, name=f"{name}_pool")(y)
    grid, heads = tuple(y.shape[1:3]), width // head_dim
    y = keras.layers.Reshape((-1, y.shape[-1]), name=f"{name}_tokens")(y)
    bias = RelativePositionBias(grid, heads, name=f"{name}_bias")(y)
    y = MultiHeadSelfAttention(
        heads,
        head_dim,
        output_dim=width,
        attention_dropout=attention_dropout,
        dropout=dropout,
        name=f"{name}_attention",
    )(y, attention_bias=bias)
    y = keras.layers.Reshape((*grid, width), name=f"{name}_map")(y)
    x = add_branch(shortcut, y, drop_path, f"{name}_attention")
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm2")(x)
    y = mlp(y, round(width * mlp_ratio), dropout=dropout, name=f"{name}_mlp")
    return add_branch(x, y, drop_path, f"{name}_mlp")


def _check_stages(image, stem_stride: int, stages, dims, depths, head_dim: int) -> None:
    if stem_stride not in (1, 2):
        raise ValueError(f"stem_stride must be 1 or 2, got {stem_stride!r}.")
    if not len(stages) == len(dims) == len(depths):
        raise ValueError(
            "stages, dims and depths must have one element for each stage, got "
            f"{tuple(stages)}, {tuple(dims)} and {tuple(depths)}."
        )
    for stage, dim in zip(stages, dims, strict=True):
        if stage not in STAGES:
            raise ValueError(f"stages must consist of {STAGES}, got {stage!r}.")
        if stage == "attention" and dim % head_dim:
            raise ValueError(f"head_dim={head_dim} does not divide dims={tuple(dims)}.")
    height, width = image.shape[1:3]
    stride = stem_stride * 2 ** len(stages)
    if height % stride or width % stride:
        raise ValueError(f"input_shape must be a multiple of {stride}, got {height}x{width}.")


def CoAtNet(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "coatnet",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    stages: Sequence[str] = ("convolution", "convolution", "attention", "attention"),
    stem_width: int = 64,
    stem_stride: int = 2,
    dims: Sequence[int] = (96, 192, 384, 768),
    depths: Sequence[int] = (2, 3, 5, 2),
    expansion: float = 4.0,
    se_ratio: float = 0.25,
    head_dim: int = 32,
    mlp_ratio: float = 4.0,
    hidden_dim: int | None = 768,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.2,
    epsilon: float = 1e-6,
) -> keras.Model:
    """Build a CoAtNet; the defaults are CoAtNet-0.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); height and width multiples of
            ``stem_stride · 2^stages``; default (224, 224, 3).
        pooling: Without top: ``None`` for the last map (batch, height, width, channels),
            ``"avg"`` or ``"max"`` over it, ``"native"`` for the head's hidden layer.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], which the model maps
            to [−1, 1] (timm's mean and standard deviation of 0.5). ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        stages: Kind of each stage's blocks, "convolution" or "attention"; each stage halves the
            map.
        stem_width: Channels of the two convolutions of the stem.
        stem_stride: Of the first of them: 2 halves the image, 1 does not.
        dims: Channels of each stage.
        depths: Blocks of each stage.
        expansion: Hidden width of a bottleneck over that of its output.
        se_ratio: Hidden width of squeeze-and-excitation over that of the block's output; 0:
            without.
        head_dim: Width of an attention head.
        mlp_ratio: Hidden width of the MLP over the channels.
        hidden_dim: Width of the head's hidden layer; ``None``: without.
        dropout: Rate after both projections of an attention block.
        attention_dropout: Rate on the attention maps.
        drop_path: Rate of the last block; earlier ones rise linearly from 0.
        epsilon: Of the layer normalisations; batch normalisations have 1e-5.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    check_counts(depths=depths, head_dim=head_dim)
    inputs, x = image_input(
        input_tensor, input_shape, (224, 224, 3), include_preprocessing=include_preprocessing
    )
    _check_stages(x, stem_stride, stages, dims, depths, head_dim)
    x = _convolution(x, stem_width, kernel_size=3, stride=stem_stride, name="stem_conv1")
    x = _batch_norm(x, "stem_norm", "gelu")
    x = _convolution(x, stem_width, kernel_size=3, name="stem_conv2")
    rates = iter(linear_drop_path(drop_path, sum(depths)))
    for stage, (kind, dim, depth) in enumerate(zip(stages, dims, depths, strict=True)):
        x = endpoint(x, stem_stride * 2**stage)
        for i in range(depth):
            common = {
                "stride": 2 if i == 0 else 1,
                "drop_path": next(rates),
                "name": f"stage{stage}_block{i}",
            }
            if kind == "convolution":
                x = convolution_block(x, dim, expansion=expansion, se_ratio=se_ratio, **common)
            else:
                x = attention_block(
                    x,
                    dim,
                    head_dim=head_dim,
                    mlp_ratio=mlp_ratio,
                    dropout=dropout,
                    attention_dropout=attention_dropout,
                    epsilon=epsilon,
                    **common,
                )
    x = endpoint(x, stem_stride * 2 ** len(stages))

    def pooled():
        y = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        y = keras.layers.LayerNormalization(epsilon=epsilon, name="norm")(y)
        if hidden_dim is None:
            return y
        return keras.layers.Dense(
            hidden_dim,
            activation="tanh",
            kernel_initializer=RandomNormal(stddev=0.02),
            name="hidden",
        )(y)

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
    )


for _name, _variant in VARIANTS.items():
    _shape = (_variant.image_size, _variant.image_size, 3)
    register_model(
        CoAtNet,
        ModelInfo(
            name=_name,
            family="coatnet",
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
    )
