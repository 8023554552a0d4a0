"""FaceRec-small: FaceRec's convolutional attention at a size for phones. The design is ours.

FaceRec (see ``facerec``) adds attention logits computed from convolutional features to those of a
vision transformer. Its proportions need far more faces than most people have. What stays here is
its heart: those logits, added in every layer, and sequence pooling. What changes, and why:

- A convolutional stem makes the tokens: convolutions at full resolution, each followed by max
  pooling, as CCT's tokenizer has them (there without batch normalisation). Linear patches learn
  little from a few thousand faces.
- The convolutional attention reads the stem's own feature maps at every scale instead of a second
  CNN that sees each patch alone, and every block has its own query and key.
- Swin's relative position table, one for each block, gives locality. Depthwise 3×3 convolutions
  before each attention and inside each MLP (as in CMT, Guo et al. 2022) are an option.
- Beside sequence pooling, which weighs tokens by content, the embedding sees every token by its
  place, narrowed by one shared projection: aligned faces have their eyes in one place.
  (insightface's face transformers join all tokens at full width; here that would be most of the
  parameters.)

``facerec_mobile`` halves the map once more, with residual blocks before: a quarter of the tokens,
and dense convolutions, which processors multiply fast in int8, in place of half of the attention.
"""

import dataclasses
import functools
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import (
    build_model,
    check_counts,
    image_input,
    linear_drop_path,
    transformer_block,
)
from keras_hybrid.applications.convolution import conv_norm, he_normal
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.channels_last import DepthwiseConv2D, MaxPooling2D
from keras_hybrid.layers.convolutional_attention import ConvolutionalAttention
from keras_hybrid.layers.pooling import SequencePooling
from keras_hybrid.layers.position import LearnedPositionEmbedding, RelativePositionBias

__all__ = ["FaceRecSmall"]

EPSILON = 1e-5
HE_NORMAL = he_normal("fan_in")


@dataclasses.dataclass(frozen=True)
class FaceRecSmallVariant:
    """What differs from the defaults, and what the model then counts."""

    arguments: dict
    parameters: int
    macs: int


VARIANTS = {
    "facerec_small": FaceRecSmallVariant({}, 5_041_335, 499_140_352),
    "facerec_mobile": FaceRecSmallVariant(
        {
            "stem_channels": (24, 64, 128),
            "stem_blocks": (0, 1, 2),
            "dim": 256,
            "depth": 4,
            "num_heads": 8,
        },
        4_207_049,
        462_603_520,
    ),
}


def _stem(x, channels: Sequence[int], blocks: Sequence[int]) -> list:
    """Stages of [convolution, max pooling, residual blocks]; returns each stage's output."""
    taps = []
    for i, (width, count) in enumerate(zip(channels, blocks, strict=True)):
        x = conv_norm(x, width, 3, name=f"stem{i}", initializer=HE_NORMAL, activation="relu")
        x = MaxPooling2D(3, strides=2, padding="same", name=f"stem{i}_pool")(x)
        for j in range(count):
            name = f"stem{i}_block{j}"
            y = conv_norm(x, width, 3, name=f"{name}_a", initializer=HE_NORMAL, activation="relu")
            y = conv_norm(y, width, 3, name=f"{name}_b", initializer=HE_NORMAL)
            x = keras.layers.Add(name=f"{name}_add")([x, y])
            x = keras.layers.ReLU(name=f"{name}_relu")(x)
        if i + 1 < len(channels):
            x = endpoint(x, 2 ** (i + 1))
        taps.append(x)
    return taps


def _tap_tokens(taps: list, conv_dim: int):
    """Bring every stage to the token grid and one width, and add: (batch, tokens, conv_dim)."""
    height, width = taps[-1].shape[1:3]
    scales = []
    for i, tap in enumerate(taps):
        x = conv_norm(tap, conv_dim, 1, name=f"tap{i}", initializer=HE_NORMAL, activation="relu")
        stride = tap.shape[1] // height
        if stride > 1:
            x = keras.layers.AveragePooling2D(stride, name=f"tap{i}_pool")(x)
        scales.append(x)
    x = keras.layers.Add(name="tap_add")(scales) if len(scales) > 1 else scales[0]
    x = keras.layers.Reshape((height * width, conv_dim), name="tap_tokens")(x)
    return keras.layers.LayerNormalization(epsilon=EPSILON, name="tap_norm")(x)


def _depthwise(x, grid: tuple[int, int], name: str):
    """X + depthwise 3×3 convolution of the tokens on their grid."""
    channels = x.shape[-1]
    y = keras.layers.Reshape((*grid, channels), name=f"{name}_map")(x)
    y = DepthwiseConv2D(
        3,
        padding="same",
        depthwise_initializer=RandomNormal(stddev=0.1),
        name=f"{name}_conv",
    )(y)
    y = keras.layers.Reshape((grid[0] * grid[1], channels), name=f"{name}_tokens")(y)
    return keras.layers.Add(name=f"{name}_add")([x, y])


def FaceRecSmall(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 306,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "facerec_small",
    *,
    classifier: str = "cosine",
    centers_per_class: int = 1,
    embedding_dim: int = 256,
    stem_channels: Sequence[int] = (24, 48),
    stem_blocks: Sequence[int] = (0, 0),
    dim: int = 192,
    depth: int = 5,
    num_heads: int = 6,
    mlp_ratio: float = 2.0,
    conv_dim: int = 64,
    conv_head_dim: int = 8,
    convolutional_attention: bool = True,
    relative_position: bool = True,
    depthwise: bool = False,
    place_dim: int = 64,
    pooled_dropout: float = 0.1,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.1,
) -> keras.Model:
    """Build FaceRec-small.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels), multiples of 2 to the power of the stem's stages and
            one: 8, and 16 for ``facerec_mobile``; default (112, 112, 3).
        pooling: Without top: ``None`` for tokens (batch, tokens, dim), ``"avg"``, ``"max"``, or
            ``"native"`` for the embedding.
        classes: Number of identities.
        classifier_activation: Only with ``classifier="dense"``.
        include_preprocessing: Whether inputs are float images in [0, 255], mapped to [−1, 1]
            inside. ``False``: already normalised.
        name: Of the model.
        classifier: ``"cosine"`` (train it with a margin loss) or ``"dense"``.
        centers_per_class: Sub-centres of the cosine classifier.
        embedding_dim: Width of the embedding.
        stem_channels: Widths of the stem's stages, each halving the map; one more halving leads
            to the tokens.
        stem_blocks: Residual blocks after each halving of the stem.
        dim: Width of a token.
        depth: Number of transformer blocks.
        num_heads: Heads of the transformer and of the convolutional attention.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        conv_dim: Width that all scales are brought to for the convolutional attention.
        conv_head_dim: Width of a head of the convolutional attention.
        convolutional_attention: ``False`` leaves the paper's idea out, for comparison.
        relative_position: Whether each attention has a relative position table.
        depthwise: Whether blocks have depthwise convolutions.
        place_dim: Width that tokens are narrowed to before they are joined, in the order of their
            places, beside sequence pooling; 0 leaves sequence pooling alone.
        pooled_dropout: Rate on what the embedding is projected from.
        dropout: Rate after both projections of a block.
        attention_dropout: Rate on the attention maps.
        drop_path: Rate of the last block; earlier ones rise linearly from 0.

    Returns:
        A Functional model from (batch, height, width, channels) to cosθ (batch, classes), float32
        in [−1, 1].

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    check_counts(depth=depth)
    inputs, x = image_input(
        input_tensor, input_shape, (112, 112, 3), include_preprocessing=include_preprocessing
    )
    if len(stem_channels) != len(stem_blocks):
        raise ValueError(
            "stem_channels and stem_blocks must have one number for each stage, got "
            f"{tuple(stem_channels)} and {tuple(stem_blocks)}."
        )
    stride = 2 ** (len(stem_channels) + 1)
    if x.shape[1] % stride or x.shape[2] % stride:
        raise ValueError(
            f"input_shape must be a multiple of {stride}, got {x.shape[1]}x{x.shape[2]}."
        )
    taps = _stem(x, (*stem_channels, dim), (*stem_blocks, 0))
    grid = tuple(taps[-1].shape[1:3])
    tokens = grid[0] * grid[1]
    features = _tap_tokens(taps, conv_dim) if convolutional_attention else None
    x = keras.layers.Reshape((tokens, dim), name="tokens")(taps[-1])
    x = LearnedPositionEmbedding(RandomNormal(stddev=0.2), name="position_embedding")(x)
    for i, rate in enumerate(linear_drop_path(drop_path, depth)):
        logits = []
        if convolutional_attention:
            logits.append(
                ConvolutionalAttention(
                    num_heads, conv_head_dim, name=f"block{i}_convolutional_attention"
                )(features)
            )
        if relative_position:
            logits.append(
                RelativePositionBias(grid, num_heads, name=f"block{i}_relative_position")(x)
            )
        if depthwise:
            x = _depthwise(x, grid, f"block{i}_depthwise")
        x = transformer_block(
            x,
            num_heads=num_heads,
            mlp_width=round(dim * mlp_ratio),
            attention_bias=sum(logits[1:], start=logits[0]) if logits else None,
            dropout=dropout,
            attention_dropout=attention_dropout,
            drop_path=rate,
            epsilon=EPSILON,
            mlp_transform=(
                functools.partial(_depthwise, grid=grid, name=f"block{i}_mlp_depthwise")
                if depthwise
                else None
            ),
            name=f"block{i}",
        )
    x = keras.layers.LayerNormalization(epsilon=EPSILON, name="norm")(x)
    x = endpoint(x, stride, grid)

    def pooled():
        vector = SequencePooling(name="sequence_pooling")(x)
        if place_dim:
            places = keras.layers.Dense(
                place_dim,
                kernel_initializer=RandomNormal(stddev=0.02),
                name="places_projection",
            )(x)
            places = keras.layers.Flatten(name="places")(places)
            vector = keras.layers.Concatenate(name="pooled")([vector, places])
        if pooled_dropout:
            vector = keras.layers.Dropout(pooled_dropout, name="pooled_dropout")(vector)
        return vector

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
        centers_per_class=centers_per_class,
    )


for _name, _variant in VARIANTS.items():
    register_model(
        FaceRecSmall,
        ModelInfo(
            name=_name,
            family="facerec_small",
            paper="ours, after FaceRec",
            input_shape=(112, 112, 3),
            classes=306,
            classifier="cosine",
            parameters=_variant.parameters,
            macs=_variant.macs,
            ours=True,
        ),
        **_variant.arguments,
    )
