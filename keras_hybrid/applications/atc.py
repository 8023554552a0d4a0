"""ATC, "Attend to Convolution": CvT with residual convolutions for its linear layers.

Paper: Lee, Ha & Kim 2023, "Attend To Convolution" (report of a DATA302 project).

**A reconstruction.** There is no code, and the text does not say how a block is built in detail.
This is a reading of it whose sizes come close to the published ones, not the authors' model. The
report's sizes have one decimal; ours in millions of trainable parameters, classes = 100:

================================  =========  =======  ======
row (blocks of each stage)        published  ours     off by
================================  =========  =======  ======
ATC 3 (1, 1, 1)                   2.9        2.8741   −0.026
ATC 5 (1, 1, 3)                   6.4        6.4484   +0.048
ATC 5 (1, 3, 1)                   3.3        3.3407   +0.041
ATC 5 (3, 1, 1)                   2.9        2.9314   +0.031
ATC 9 (1, 2, 6)                   12.0       12.0431  +0.043
ATC 13 (1, 2, 10)                 19.2       19.1917  −0.008
ATC 15 (1, 4, 10)                 19.7       19.6582  −0.042
ATC(Res) 3                        3.3        3.2676   −0.032
ATC(Res) 15                       20.1       20.0517  −0.048
Table 6: MLP+Res                  2.9        2.8741   −0.026
Table 6: Res+Res (ATC 3)          2.9        2.8741   −0.026
Table 6: Res*+Res* (ATC(Res) 3)   3.3        3.2676   −0.032
Table 6: Res+MLP                  3.9        3.1156   −0.78
Table 6: CvT                      5.8        3.1156   −2.68
================================  =========  =======  ======

Minor terms (which 1 × 1 convolution has a bias, where a normalisation sits, the form of the
residual embedding) were chosen so that sizes fall within the rounding, so the matches do not
confirm one another. The last two rows are missed; CvT's would be that of depths (1, 3, 2), with
5.8051. How blocks spread over the stages is published for 3 and 5 blocks only; for 9, 13 and 15
it is a choice. What we read:

- Stages before the last: ``x + Attention(LN x)``, then ``x + F(LN x)``. Queries, keys and values
  are residual: depthwise 3 × 3, BN, 1 × 1, plus the token (keys and values, of stride 2: plus the
  mean of 2 × 2 tokens). ``F(y) = y + f(f(y))`` with f = depthwise 3 × 3, BN, GELU, 1 × 1.
- The last stage is CvT's, linear layers and all, against the text's "removes all linear
  projections": its class token has no neighbours to convolve with. Without it no size fits.
- "Res" token embedding: CvT's convolution, then ``x + g(g(x))`` with g = depthwise 3 × 3, BN,
  GELU, 1 × 1, BN, before the layer normalisation.
- Widths, heads, activation of CvT's MLP, scale of the logits, stochastic depth and the
  normalisation of images are CvT's; the report gives none.
"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_model,
    check_counts,
    image_input,
)
from keras_hybrid.applications.convolutional_vision_transformer import convolutional_stages
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import RandomUniform
from keras_hybrid.layers.channels_last import Conv2D, DepthwiseConv2D
from keras_hybrid.layers.normalization import BatchNormalization

__all__ = ["ATC"]

PAPER = 'Lee, Ha & Kim 2023, "Attend To Convolution", report of a DATA302 project'


@dataclasses.dataclass(frozen=True)
class ATCVariant:
    """A row of the report's tables 3, 4 and 5."""

    depths: tuple[int, ...]
    parameters: int
    macs: int
    residual_embedding: bool = False


VARIANTS = {
    "atc_3": ATCVariant((1, 1, 1), 2_879_012, 17_270_528),
    "atc_3_res": ATCVariant((1, 1, 1), 3_277_604, 20_310_784, residual_embedding=True),
    "atc_5_113": ATCVariant((1, 1, 3), 6_457_892, 33_252_608),
    "atc_5_131": ATCVariant((1, 3, 1), 3_349_412, 22_821_632),
    "atc_5_311": ATCVariant((3, 1, 1), 2_937_508, 20_150_016),
    "atc_9": ATCVariant((1, 2, 6), 12_061_412, 60_001_280),
    "atc_13": ATCVariant((1, 2, 10), 19_219_172, 91_965_440),
    "atc_15": ATCVariant((1, 4, 10), 19_689_572, 97_516_544),
    "atc_15_res": ATCVariant((1, 4, 10), 20_088_164, 100_556_800, residual_embedding=True),
}


def separable_convolutions(x, name: str, *, closing_norm: bool):
    """Twice depthwise 3 × 3, BN, GELU, 1 × 1 and, for ``closing_norm``, BN; all without bias."""
    channels = x.shape[-1]
    for i in range(2):
        # PyTorch's default for either convolution.
        bound = channels**-0.5
        x = DepthwiseConv2D(
            3,
            padding="same",
            use_bias=False,
            depthwise_initializer=RandomUniform(-1 / 3, 1 / 3),
            name=f"{name}{i}_depthwise",
        )(x)
        x = _batch_norm(f"{name}{i}_norm1")(x)
        x = keras.layers.Activation("gelu", name=f"{name}{i}_gelu")(x)
        x = Conv2D(
            channels,
            1,
            use_bias=False,
            kernel_initializer=RandomUniform(-bound, bound),
            name=f"{name}{i}_pointwise",
        )(x)
        if closing_norm:
            x = _batch_norm(f"{name}{i}_norm2")(x)
    return x


def _batch_norm(name: str):
    return BatchNormalization(epsilon=1e-5, momentum=0.9, name=name)


def convolutional_feed_forward(x, grid_size: tuple[int, int], name: str):
    """Tokens y → y + f(f(y)), each f a separable convolution of their grid."""
    dim = x.shape[-1]
    y = keras.layers.Reshape((*grid_size, dim), name=f"{name}_map")(x)
    y = separable_convolutions(y, name, closing_norm=False)
    y = keras.layers.Reshape((-1, dim), name=f"{name}_tokens")(y)
    return keras.layers.Add(name=f"{name}_add")([x, y])


def residual_convolutions(x, name: str):
    """Map x → x + g(g(x)), each g a separable convolution that ends in a normalisation."""
    y = separable_convolutions(x, f"{name}_residual", closing_norm=True)
    return keras.layers.Add(name=f"{name}_add")([x, y])


def ATC(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 100,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "atc_15",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    dims: Sequence[int] = (64, 192, 384),
    depths: Sequence[int] = (1, 4, 10),
    num_heads: Sequence[int] = (1, 3, 6),
    patch_sizes: Sequence[int] = (7, 3, 3),
    patch_strides: Sequence[int] = (4, 2, 2),
    patch_paddings: Sequence[int] = (2, 1, 1),
    key_strides: int = 2,
    mlp_ratio: float = 4.0,
    residual_embedding: bool = False,
    residual_projection: bool = True,
    residual_feed_forward: bool = True,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.1,
    epsilon: float = 1e-5,
) -> keras.Model:
    """Build ATC; the defaults are ATC 15. This is a reconstruction: see the module's docstring.

    The three ``residual_`` arguments are the rows of the report's table 2. Without any of them
    the model is CvT.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels), of any size; default (32, 32, 3).
        pooling: Without top: ``None`` for the last stage's tokens (batch, 1 + height · width,
            channels), ``"avg"`` or ``"max"`` over them, ``"native"`` for the class token.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ImageNet's statistics, as CvT's. ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        dims: Width of each stage's tokens. Its length is the number of stages.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        patch_sizes: Kernel of each stage's embedding.
        patch_strides: Its stride.
        patch_paddings: Its padding, on every side.
        key_strides: Stride of the convolutions that make keys and values.
        mlp_ratio: Hidden width of an MLP over the stage's.
        residual_embedding: Whether a residual block follows each stage's embedding: ATC(Res).
        residual_projection: Whether queries, keys and values are residual before the last stage.
        residual_feed_forward: Whether residual convolutions take the MLPs' place before the last
            stage.
        dropout: Rate on the embedded tokens and after both projections of a block; residual
            convolutions have none.
        attention_dropout: Rate on the attention maps.
        drop_path: Rate of the last block; earlier ones of the last stage rise linearly from 0.
        epsilon: Of the layer normalisations.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    check_counts(depths=depths)
    inputs, x = image_input(
        input_tensor,
        input_shape,
        (32, 32, 3),
        include_preprocessing=include_preprocessing,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    x = convolutional_stages(
        x,
        dims=dims,
        depths=depths,
        num_heads=num_heads,
        patch_sizes=patch_sizes,
        patch_strides=patch_strides,
        patch_paddings=patch_paddings,
        key_strides=key_strides,
        mlp_ratio=mlp_ratio,
        dropout=dropout,
        attention_dropout=attention_dropout,
        drop_path=drop_path,
        epsilon=epsilon,
        after_embedding=residual_convolutions if residual_embedding else None,
        shortcut=residual_projection,
        feed_forward=convolutional_feed_forward if residual_feed_forward else None,
    )
    return build_model(
        inputs,
        x,
        lambda: x[:, 0],
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
    register_model(
        ATC,
        ModelInfo(
            name=_name,
            family="atc",
            paper=PAPER,
            input_shape=(32, 32, 3),
            classes=100,
            classifier="dense",
            parameters=_variant.parameters,
            macs=_variant.macs,
            reconstruction=True,
        ),
        depths=_variant.depths,
        residual_embedding=_variant.residual_embedding,
    )
