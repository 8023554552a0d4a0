"""Face Transformer: a plain ViT whose patches may overlap, under a cosine classifier.

Paper: Zhong and Deng 2021, "Face Transformer for Recognition" (arXiv:2103.14803); retrained on
CASIA-WebFace in the report "Towards a robust and EfficientNet Architecture for Face Recognition".
We follow the authors' code, to which outputs are tested:

- Inputs are raw: [0, 255], neither mean nor standard deviation.
- Attention divides by √512, the width of the model, not of a head; queries, keys and values have
  no bias.
- The class token, normalised, is the embedding; nothing is projected behind it.
- Class token and positions start from N(0, 1), everything linear from PyTorch's uniform default.

ViT-P8S8 cuts the image into patches of 8 pixels; ViT-P12S8 lets patches of 12 slide by 8, so that
neighbours share a border. Either is a convolution. The authors' code calls the classifier "loss".
"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import (
    CASIA_CLASSES,
    add_branch,
    build_model,
    check_counts,
    image_input,
)
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import RandomNormal, RandomUniform, VarianceScaling
from keras_hybrid.layers.attention import MultiHeadSelfAttention
from keras_hybrid.layers.channels_last import Conv2D
from keras_hybrid.layers.position import LearnedPositionEmbedding
from keras_hybrid.layers.tokens import ClassToken

__all__ = ["FaceTransformer"]

PAPER = "Zhong and Deng 2021, arXiv:2103.14803"
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class FaceTransformerVariant:
    """How the tokens are made, and what the model then counts."""

    patch_size: int
    patch_stride: int
    padding: int
    parameters: int
    macs: int


VARIANTS = {
    "vit_p8s8": FaceTransformerVariant(8, 8, 0, 68_631_040, 13_213_657_088),
    "vit_p12s8": FaceTransformerVariant(12, 8, 4, 68_753_920, 13_237_741_568),
}


def _uniform(fan_in: int) -> keras.initializers.Initializer:
    """PyTorch's default for weights and biases: U(−1/√fan_in, 1/√fan_in)."""
    return RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


def _dense(x, units: int, name: str):
    fan_in = x.shape[-1]
    return keras.layers.Dense(
        units, kernel_initializer=_uniform(fan_in), bias_initializer=_uniform(fan_in), name=name
    )(x)


def face_block(x, *, num_heads, head_dim, mlp_width, dropout, name):
    """The authors' encoder block: x + MHSA(LN x), then x + MLP(LN x)."""
    dim = x.shape[-1]
    y = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm1")(x)
    y = MultiHeadSelfAttention(
        num_heads,
        head_dim=head_dim,
        qkv_bias=False,
        scale=dim**-0.5,
        dropout=dropout,
        kernel_initializer=VarianceScaling(1 / 3, "fan_in", "uniform"),
        bias_initializer=_uniform(num_heads * head_dim),
        name=f"{name}_attention",
    )(y)
    x = add_branch(x, y, 0.0, f"{name}_attention")
    y = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm2")(x)
    y = _dense(y, mlp_width, f"{name}_mlp_dense1")
    # By name, Keras's GELU is the exact (erf) form.
    y = keras.layers.Activation("gelu", name=f"{name}_mlp_gelu")(y)
    if dropout:
        y = keras.layers.Dropout(dropout, name=f"{name}_mlp_dropout1")(y)
    y = _dense(y, dim, f"{name}_mlp_dense2")
    if dropout:
        y = keras.layers.Dropout(dropout, name=f"{name}_mlp_dropout2")(y)
    return add_branch(x, y, 0.0, f"{name}_mlp")


def face_encoder(
    x,
    *,
    patch_size: int,
    patch_stride: int,
    stride: int,
    dim: int,
    depth: int,
    num_heads: int,
    head_dim: int,
    mlp_width: int,
    embedding_dropout: float,
    dropout: float,
):
    """Turn an image or a map into normalised tokens (batch, 1 + patches, dim), class first.

    ``patch_stride`` is counted in places of ``x``, ``stride`` in pixels of the image.
    """
    fan_in = patch_size**2 * x.shape[-1]
    x = Conv2D(
        dim,
        patch_size,
        strides=patch_stride,
        padding="valid",
        kernel_initializer=_uniform(fan_in),
        bias_initializer=_uniform(fan_in),
        name="patch_embedding",
    )(x)
    grid_size = x.shape[1:3]
    x = keras.layers.Reshape((-1, dim), name="tokens")(x)
    x = ClassToken(RandomNormal(stddev=1.0), name="class_token")(x)
    x = LearnedPositionEmbedding(RandomNormal(stddev=1.0), name="position_embedding")(x)
    if embedding_dropout:
        x = keras.layers.Dropout(embedding_dropout, name="position_dropout")(x)
    for i in range(depth):
        x = face_block(
            x,
            num_heads=num_heads,
            head_dim=head_dim,
            mlp_width=mlp_width,
            dropout=dropout,
            name=f"block{i}",
        )
    x = keras.layers.LayerNormalization(epsilon=EPSILON, name="norm")(x)
    return endpoint(x, stride, grid_size)


def FaceTransformer(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = CASIA_CLASSES,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "face_transformer",
    *,
    classifier: str = "cosine",
    centers_per_class: int = 1,
    embedding_dim: int | None = None,
    patch_size: int = 8,
    patch_stride: int = 8,
    padding: int = 0,
    dim: int = 512,
    depth: int = 20,
    num_heads: int = 8,
    head_dim: int = 64,
    mlp_ratio: float = 4.0,
    embedding_dropout: float = 0.1,
    dropout: float = 0.1,
) -> keras.Model:
    """Build a Face Transformer. The defaults are ViT-P8S8.

    ViT-P12S8 is ``patch_size=12, padding=4``, registered as ``vit_p12s8``.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels), multiples of ``patch_stride``; default
            (112, 112, 3).
        pooling: Without top: ``None`` for all tokens (batch, 1 + patches, dim), ``"avg"`` or
            ``"max"`` over them, ``"native"`` for the class token.
        classes: Number of identities; the default is cleaned CASIA-WebFace's.
        classifier_activation: Only with ``classifier="dense"``.
        include_preprocessing: Inputs are images in [0, 255] either way, which is what the authors
            train on; the layer it adds multiplies by one.
        name: Of the model.
        classifier: ``"cosine"`` (train it with a margin loss) or ``"dense"``.
        centers_per_class: Sub-centres of the cosine classifier.
        embedding_dim: Optional width of a projected, batch-normalised embedding; the authors have
            none.
        patch_size: Side of a patch in pixels (the P of ViT-P12S8).
        patch_stride: Pixels from a patch to the next (the S of ViT-P12S8).
        padding: Zeros around the image.
        dim: Width of a token.
        depth: Number of blocks.
        num_heads: Heads of each block.
        head_dim: Width of a head.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        embedding_dropout: Rate on the embedded tokens.
        dropout: Rate after the attention and after both layers of the MLP.

    Returns:
        A Functional model from (batch, height, width, channels) to cosθ (batch, classes), float32
        in [−1, 1].

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    check_counts(depth=depth, head_dim=head_dim)
    inputs, x = image_input(
        input_tensor,
        input_shape,
        (112, 112, 3),
        include_preprocessing=include_preprocessing,
        mean=0.0,
        std=1.0,
    )
    for argument, value in (("patch_size", patch_size), ("patch_stride", patch_stride)):
        if value < 1:
            raise ValueError(f"{argument} must be a positive integer, got {value}.")
    height, width = x.shape[1:3]
    if patch_size > min(height, width) + 2 * padding:
        raise ValueError(
            f"patch_size must be at most the image's height and width with padding={padding} "
            f"around them, got {patch_size} for {height}x{width}."
        )
    if height % patch_stride or width % patch_stride:
        raise ValueError(
            f"input_shape must be a multiple of patch_stride={patch_stride}, got {height}x{width}."
        )
    if padding:
        x = keras.layers.ZeroPadding2D(padding, name="patch_padding")(x)
    x = face_encoder(
        x,
        patch_size=patch_size,
        patch_stride=patch_stride,
        stride=patch_stride,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        head_dim=head_dim,
        mlp_width=round(dim * mlp_ratio),
        embedding_dropout=embedding_dropout,
        dropout=dropout,
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
        centers_per_class=centers_per_class,
    )


for _name, _variant in VARIANTS.items():
    register_model(
        FaceTransformer,
        ModelInfo(
            name=_name,
            family="face_transformer",
            paper=PAPER,
            input_shape=(112, 112, 3),
            classes=CASIA_CLASSES,
            classifier="cosine",
            parameters=_variant.parameters,
            macs=_variant.macs,
        ),
        patch_size=_variant.patch_size,
        patch_stride=_variant.patch_stride,
        padding=_variant.padding,
    )
