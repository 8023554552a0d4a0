"""Vision Transformer: the plain encoder the hybrids are compared with.

Paper: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv:2010.11929). Layout, epsilon
1e-6 and initialisation are those of timm's ``vit_*_patch16_224``, to which outputs are tested.
"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import (
    build_model,
    check_counts,
    check_patches,
    hands_on_to,
    image_input,
    linear_drop_path,
    transformer_block,
)
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.channels_last import Conv2D
from keras_hybrid.layers.position import LearnedPositionEmbedding
from keras_hybrid.layers.tokens import ClassToken

__all__ = ["ViT", "ViTB16", "ViTS16", "ViTTi16"]

PAPER = "Dosovitskiy et al. 2021, arXiv:2010.11929"


@dataclasses.dataclass(frozen=True)
class ViTVariant:
    """The numbers that make a size."""

    dim: int
    num_heads: int
    parameters: int
    macs: int


VARIANTS = {
    "vit_ti16": ViTVariant(192, 3, 5_717_416, 1_253_683_200),
    "vit_s16": ViTVariant(384, 6, 22_050_664, 4_598_882_304),
    "vit_b16": ViTVariant(768, 12, 86_567_656, 17_563_828_224),
}


def _architecture(variant: str) -> dict:
    return {"dim": VARIANTS[variant].dim, "num_heads": VARIANTS[variant].num_heads}


def ViT(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "vit",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    patch_size: int = 16,
    dim: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.0,
    epsilon: float = 1e-6,
) -> keras.Model:
    """Build a Vision Transformer.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels), multiples of ``patch_size``; default
            (224, 224, 3).
        pooling: Without top: ``None`` for all tokens (batch, 1 + patches, dim), ``"avg"`` or
            ``"max"`` over them, ``"native"`` for the class token.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], which the model maps
            to [−1, 1] (timm's mean and standard deviation of 0.5). ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        patch_size: Side of a patch in pixels.
        dim: Width of a token.
        depth: Number of blocks.
        num_heads: Heads of each block.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        dropout: Rate on the embedded tokens and after both projections of a block.
        attention_dropout: Rate on the attention maps.
        drop_path: Rate of the last block; earlier ones rise linearly from 0.
        epsilon: Of the layer normalisations.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    check_counts(depth=depth)
    inputs, x = image_input(
        input_tensor, input_shape, (224, 224, 3), include_preprocessing=include_preprocessing
    )
    check_patches(x, patch_size)
    x = Conv2D(
        dim,
        patch_size,
        strides=patch_size,
        padding="valid",
        kernel_initializer=RandomNormal(stddev=0.02),
        name="patch_embedding",
    )(x)
    grid_size = x.shape[1:3]
    x = keras.layers.Reshape((-1, dim), name="tokens")(x)
    x = ClassToken(name="class_token")(x)
    x = LearnedPositionEmbedding(name="position_embedding")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="position_dropout")(x)
    for i, rate in enumerate(linear_drop_path(drop_path, depth)):
        x = transformer_block(
            x,
            num_heads=num_heads,
            mlp_width=round(dim * mlp_ratio),
            qkv_bias=qkv_bias,
            dropout=dropout,
            attention_dropout=attention_dropout,
            drop_path=rate,
            epsilon=epsilon,
            name=f"block{i}",
        )
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="norm")(x)
    x = endpoint(x, patch_size, grid_size)
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


@hands_on_to(ViT, **_architecture("vit_ti16"))
def ViTTi16(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "vit_ti16",
    **architecture,
) -> keras.Model:
    """Build ViT-Ti/16: 12 blocks of width 192. Arguments as ``ViT``."""
    return ViT(
        include_top,
        weights,
        input_tensor,
        input_shape,
        pooling,
        classes,
        classifier_activation,
        include_preprocessing,
        name,
        **{**_architecture("vit_ti16"), **architecture},
    )


@hands_on_to(ViT, **_architecture("vit_s16"))
def ViTS16(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "vit_s16",
    **architecture,
) -> keras.Model:
    """Build ViT-S/16: 12 blocks of width 384. Arguments as ``ViT``."""
    return ViT(
        include_top,
        weights,
        input_tensor,
        input_shape,
        pooling,
        classes,
        classifier_activation,
        include_preprocessing,
        name,
        **{**_architecture("vit_s16"), **architecture},
    )


@hands_on_to(ViT, **_architecture("vit_b16"))
def ViTB16(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "vit_b16",
    **architecture,
) -> keras.Model:
    """Build ViT-B/16: 12 blocks of width 768. Arguments as ``ViT``."""
    return ViT(
        include_top,
        weights,
        input_tensor,
        input_shape,
        pooling,
        classes,
        classifier_activation,
        include_preprocessing,
        name,
        **{**_architecture("vit_b16"), **architecture},
    )


for _name, _builder in (("vit_ti16", ViTTi16), ("vit_s16", ViTS16), ("vit_b16", ViTB16)):
    register_model(
        _builder,
        ModelInfo(
            name=_name,
            family="vit",
            paper=PAPER,
            input_shape=(224, 224, 3),
            classes=1000,
            classifier="dense",
            parameters=VARIANTS[_name].parameters,
            macs=VARIANTS[_name].macs,
        ),
    )
