"""Compact transformers: CCT, CVT and ViT-Lite.

Paper: Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers"
(arXiv:2104.05704). We follow the authors' code where it differs from the text: the encoder layer
is not plain pre-norm, its second residual continues from the *normalised* sum,
``b = LN(x + MHSA(LN x)); out = b + MLP(b)``. Outputs are tested against that code.
"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    add_branch,
    build_model,
    check_counts,
    check_patches,
    hands_on_to,
    image_input,
    image_shape,
    linear_drop_path,
    mlp,
)
from keras_hybrid.applications.convolution import he_normal
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.attention import MultiHeadSelfAttention
from keras_hybrid.layers.channels_last import Conv2D, MaxPooling2D
from keras_hybrid.layers.pooling import SequencePooling
from keras_hybrid.layers.position import LearnedPositionEmbedding
from keras_hybrid.layers.tokens import ClassToken

__all__ = ["CCT", "CVT", "ViTLite"]

PAPER = "Hassani et al. 2021, arXiv:2104.05704"
EPSILON = 1e-5
# The authors' CIFAR-10 statistics, in units of [0, 255].
CIFAR_MEAN = (0.4914 * 255, 0.4822 * 255, 0.4465 * 255)
CIFAR_STD = (0.2470 * 255, 0.2435 * 255, 0.2616 * 255)


@dataclasses.dataclass(frozen=True)
class CompactVariant:
    """A row of the paper's table of models."""

    builder: str
    arguments: dict
    image_size: int
    classes: int
    parameters: int
    macs: int


def _cct(dim, depth, heads, ratio, kernel, convolutions, image_size, classes, parameters, macs):
    arguments = {
        "dim": dim,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": ratio,
        "kernel_size": kernel,
        "num_convolutions": convolutions,
    }
    return CompactVariant("CCT", arguments, image_size, classes, parameters, macs)


def _lite(builder, depth, parameters, macs):
    return CompactVariant(builder, {"depth": depth}, 32, 10, parameters, macs)


VARIANTS = {
    "cct_2_3x2": _cct(128, 2, 2, 1, 3, 2, 32, 10, 283_723, 35_341_568),
    "cct_4_3x2": _cct(128, 4, 2, 1, 3, 2, 32, 10, 482_123, 50_021_632),
    "cct_6_3x1": _cct(256, 6, 4, 2, 3, 1, 32, 10, 3_233_803, 1_013_844_480),
    "cct_6_3x2": _cct(256, 6, 4, 2, 3, 2, 32, 10, 3_326_923, 253_463_040),
    "cct_7_3x1": _cct(256, 7, 4, 2, 3, 1, 32, 10, 3_760_139, 1_181_616_640),
    "cct_7_3x2": _cct(256, 7, 4, 2, 3, 2, 32, 10, 3_853_259, 289_114_624),
    "cct_7_7x2": _cct(256, 7, 4, 2, 7, 2, 224, 102, 4_573_735, 1_604_554_240),
    "cct_14_7x2": _cct(384, 14, 6, 3, 7, 2, 224, 1000, 22_367_273, 5_521_901_568),
    "cvt_6_4": _lite("CVT", 6, 3_190_283, 214_731_264),
    "cvt_7_4": _lite("CVT", 7, 3_716_619, 250_382_848),
    "vit_lite_6_4": _lite("ViTLite", 6, 3_190_538, 218_240_512),
    "vit_lite_7_4": _lite("ViTLite", 7, 3_716_874, 254_482_432),
}


def convolutional_tokenizer(x, dim: int, kernel_size: int, num_convolutions: int):
    """Apply n × [convolution, ReLU, max pooling 3×3 stride 2], widths 64 … dim, without bias.

    Returns the map and its stride.
    """
    stride, padding = max(1, kernel_size // 2 - 1), max(1, kernel_size // 2)
    total_stride = 1
    for i in range(num_convolutions):
        if i:
            x = endpoint(x, total_stride)
        x = keras.layers.ZeroPadding2D(padding, name=f"tokenizer{i}_padding")(x)
        x = Conv2D(
            dim if i == num_convolutions - 1 else 64,
            kernel_size,
            strides=stride,
            use_bias=False,
            kernel_initializer=he_normal("fan_in"),
            name=f"tokenizer{i}_conv",
        )(x)
        x = keras.layers.ReLU(name=f"tokenizer{i}_relu")(x)
        # After a ReLU padding with zeros equals padding with minus infinity.
        x = keras.layers.ZeroPadding2D(1, name=f"tokenizer{i}_pool_padding")(x)
        x = MaxPooling2D(3, strides=2, name=f"tokenizer{i}_pool")(x)
        total_stride *= 2 * stride
    return x, total_stride


def compact_block(x, *, num_heads, mlp_width, dropout, attention_dropout, drop_path, name):
    """The authors' encoder layer: a = x + MHSA(LN x); b = LN a; b + MLP b."""
    y = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm1")(x)
    y = MultiHeadSelfAttention(
        num_heads,
        qkv_bias=False,
        attention_dropout=attention_dropout,
        dropout=dropout,
        name=f"{name}_attention",
    )(y)
    x = add_branch(x, y, drop_path, f"{name}_attention")
    x = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm2")(x)
    y = mlp(x, mlp_width, dropout=dropout, name=f"{name}_mlp")
    return add_branch(x, y, drop_path, f"{name}_mlp")


def _compact(
    inputs,
    x,
    *,
    stride,
    class_token,
    dim,
    depth,
    num_heads,
    mlp_ratio,
    dropout,
    attention_dropout,
    drop_path,
    **head,
) -> keras.Model:
    grid_size = x.shape[1:3]
    x = keras.layers.Reshape((-1, dim), name="tokens")(x)
    if class_token:
        x = ClassToken(initializer="zeros", name="class_token")(x)
    x = LearnedPositionEmbedding(RandomNormal(stddev=0.2), name="position_embedding")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="position_dropout")(x)
    for i, rate in enumerate(linear_drop_path(drop_path, depth)):
        x = compact_block(
            x,
            num_heads=num_heads,
            mlp_width=round(dim * mlp_ratio),
            dropout=dropout,
            attention_dropout=attention_dropout,
            drop_path=rate,
            name=f"block{i}",
        )
    x = keras.layers.LayerNormalization(epsilon=EPSILON, name="norm")(x)
    x = endpoint(x, stride, grid_size)
    if class_token:
        return build_model(inputs, x, lambda: x[:, 0], **head)
    return build_model(inputs, x, lambda: SequencePooling(name="sequence_pooling")(x), **head)


def CCT(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 10,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "cct",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    kernel_size: int = 3,
    num_convolutions: int = 1,
    dim: int = 256,
    depth: int = 7,
    num_heads: int = 4,
    mlp_ratio: float = 2.0,
    dropout: float = 0.0,
    attention_dropout: float = 0.1,
    drop_path: float = 0.1,
    pixel_mean: float | Sequence[float] | None = None,
    pixel_std: float | Sequence[float] | None = None,
) -> keras.Model:
    """Build a Compact Convolutional Transformer.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); default (32, 32, 3).
        pooling: Without top: ``None`` for tokens (batch, tokens, dim), ``"avg"``, ``"max"``, or
            ``"native"`` for sequence pooling.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ``pixel_mean`` and ``pixel_std``. ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        kernel_size: Of the tokenizer's convolutions (the k of CCT-7/k×n); their stride is
            max(1, k // 2 − 1).
        num_convolutions: Convolutions of the tokenizer (the n of CCT-7/k×n).
        dim: Width of a token.
        depth: Number of encoder layers.
        num_heads: Heads of each layer.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        dropout: Rate after the positions and both projections.
        attention_dropout: Rate on the attention maps.
        drop_path: Rate of the last layer; earlier ones rise linearly from 0.
        pixel_mean: One number or one for each channel, in units of [0, 255]; ``None``: the authors'
            of CIFAR-10 up to 64 pixels, ImageNet's above. A model that takes the weights of one of
            another size needs that one's.
        pixel_std: Likewise.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    if num_convolutions < 1:
        raise ValueError(f"num_convolutions must be a positive integer, got {num_convolutions}.")
    shape = image_shape(input_tensor, input_shape, (32, 32, 3))
    if (pixel_mean is None) != (pixel_std is None):
        raise ValueError(
            "pixel_mean and pixel_std must be given together, or neither, got "
            f"pixel_mean={pixel_mean} and pixel_std={pixel_std}."
        )
    if pixel_mean is None:
        is_small = max(shape[:2]) <= 64
        pixel_mean, pixel_std = (
            (CIFAR_MEAN, CIFAR_STD) if is_small else (IMAGENET_MEAN, IMAGENET_STD)
        )
    check_counts(depth=depth)
    inputs, x = image_input(
        input_tensor,
        input_shape,
        shape,
        include_preprocessing=include_preprocessing,
        mean=pixel_mean,
        std=pixel_std,
    )
    x, stride = convolutional_tokenizer(x, dim, kernel_size, num_convolutions)
    return _compact(
        inputs,
        x,
        stride=stride,
        class_token=False,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        dropout=dropout,
        attention_dropout=attention_dropout,
        drop_path=drop_path,
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier=classifier,
        classifier_activation=classifier_activation,
        weights=weights,
        name=name,
        embedding_dim=embedding_dim,
    )


def ViTLite(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 10,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "vit_lite",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    class_token: bool = True,
    patch_size: int = 4,
    dim: int = 256,
    depth: int = 7,
    num_heads: int = 4,
    mlp_ratio: float = 2.0,
    dropout: float = 0.0,
    attention_dropout: float = 0.1,
    drop_path: float = 0.1,
) -> keras.Model:
    """Build ViT-Lite: the compact encoder over plain patches.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels), multiples of ``patch_size``; default (32, 32, 3).
        pooling: Without top: ``None`` for tokens, ``"avg"``, ``"max"``, or ``"native"`` for the
            class token (sequence pooling without one).
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            the authors' CIFAR-10 statistics. ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        class_token: Whether a class token collects the image; ``False``: sequence pooling (CVT).
        patch_size: Side of a patch in pixels.
        dim: Width of a token.
        depth: Number of encoder layers.
        num_heads: Heads of each layer.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        dropout: Rate after the positions and both projections.
        attention_dropout: Rate on the attention maps.
        drop_path: Rate of the last layer; earlier ones rise linearly from 0.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    check_counts(depth=depth)
    inputs, x = image_input(
        input_tensor,
        input_shape,
        (32, 32, 3),
        include_preprocessing=include_preprocessing,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
    )
    check_patches(x, patch_size)
    x = Conv2D(
        dim,
        patch_size,
        strides=patch_size,
        kernel_initializer=he_normal("fan_in"),
        name="patch_embedding",
    )(x)
    return _compact(
        inputs,
        x,
        stride=patch_size,
        class_token=class_token,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        dropout=dropout,
        attention_dropout=attention_dropout,
        drop_path=drop_path,
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier=classifier,
        classifier_activation=classifier_activation,
        weights=weights,
        name=name,
        embedding_dim=embedding_dim,
    )


@hands_on_to(ViTLite, class_token=False)
def CVT(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 10,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "cvt",
    **architecture,
) -> keras.Model:
    """Build the Compact Vision Transformer: ViT-Lite with sequence pooling, no class token.

    Arguments as ``ViTLite``.
    """
    return ViTLite(
        include_top,
        weights,
        input_tensor,
        input_shape,
        pooling,
        classes,
        classifier_activation,
        include_preprocessing,
        name,
        **{"class_token": False, **architecture},
    )


_FUNCTIONS = {"CCT": CCT, "CVT": CVT, "ViTLite": ViTLite}
for _name, _variant in VARIANTS.items():
    _shape = (_variant.image_size, _variant.image_size, 3)
    register_model(
        _FUNCTIONS[_variant.builder],
        ModelInfo(
            name=_name,
            family="cct",
            paper=PAPER,
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
