"""CvT: a pyramid of transformers with convolutional token embeddings and projections.

Paper: Wu et al. 2021, "CvT: Introducing Convolutions to Vision Transformers" (arXiv:2103.15808).
Not to be confused with ``CVT``, the Compact Vision Transformer (``cct``). We follow the authors'
code, to which the output is tested, where it differs from the text:

- the MLP's activation is ``x · sigmoid(1.702 x)``, not GELU;
- the first embedding pads its 7 × 7 convolution by 2, not 3;
- logits are divided by the square root of the stage's width, not of the head's;
- the class token exists in the last stage only and skips the convolutions of the projections;
- stochastic depth acts in the last stage only.

The paper's images are 224 × 224. At 32 × 32, where the embeddings leave 8 × 8, 4 × 4 and 2 × 2
tokens, CvT-13 and CvT-21 are registered as ours: others compare with the former, the authors
publish neither.
"""

import dataclasses
from collections.abc import Callable, Sequence

import keras
from keras import ops

from keras_hybrid.applications.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    add_branch,
    build_model,
    check_counts,
    image_input,
    linear_drop_path,
    mlp,
)
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import RandomUniform
from keras_hybrid.layers.channels_last import Conv2D
from keras_hybrid.layers.convolutional_projection import ConvolutionalProjectionAttention
from keras_hybrid.layers.tokens import ClassToken

__all__ = ["CvT"]

PAPER = "Wu et al. 2021, arXiv:2103.15808"


@dataclasses.dataclass(frozen=True)
class CvTVariant:
    """The numbers that make a size."""

    depths: tuple[int, ...]
    image_size: int
    classes: int
    parameters: int
    macs: int
    ours: bool = False


VARIANTS = {
    "cvt_13": CvTVariant((1, 2, 10), 224, 1000, 20_023_208, 4_566_089_216),
    "cvt_13_32": CvTVariant((1, 2, 10), 32, 100, 19_676_708, 100_431_872, ours=True),
    "cvt_21": CvTVariant((1, 4, 16), 224, 1000, 31_664_552, 7_177_985_024),
    "cvt_21_32": CvTVariant((1, 4, 16), 32, 100, 31_318_052, 160_896_512, ours=True),
}


@keras.saving.register_keras_serializable(package="keras_hybrid")
def quick_gelu(x):
    """Return ``x · sigmoid(1.702 x)`` (Hendrycks & Gimpel 2016, section 2)."""
    return x * ops.sigmoid(1.702 * x)


def convolutional_embedding(x, dim: int, kernel_size: int, strides: int, padding: int, name: str):
    """Make a map of tokens by a strided convolution, not yet normalised."""
    # PyTorch's default, which the authors leave in place.
    bound = (kernel_size**2 * x.shape[-1]) ** -0.5
    initializer = RandomUniform(-bound, bound)
    x = keras.layers.ZeroPadding2D(padding, name=f"{name}_padding")(x)
    return Conv2D(
        dim,
        kernel_size,
        strides=strides,
        padding="valid",
        kernel_initializer=initializer,
        bias_initializer=initializer.clone(),
        name=f"{name}_conv",
    )(x)


def convolutional_block(
    x,
    *,
    grid_size: tuple[int, int],
    num_heads: int,
    mlp_width: int,
    name: str,
    epsilon: float,
    class_token: bool = False,
    key_strides: int = 2,
    shortcut: bool = False,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.0,
    feed_forward: Callable | None = None,
):
    """CvT's block: x + Attention(LN x), then x + MLP(LN x).

    Args:
        x: Tokens, shape (batch, [1 +] height · width, channels).
        grid_size: (height, width) of the tokens' grid.
        num_heads: Heads of the attention.
        mlp_width: Hidden width of the MLP.
        name: Prefix of the layers' names.
        epsilon: Of both layer normalisations.
        class_token: Whether a class token precedes the grid.
        key_strides: Stride of the convolutions that make keys and values.
        shortcut: Whether the projections to queries, keys and values are residual.
        dropout: Rate after both projections.
        attention_dropout: Rate on the attention map.
        drop_path: Rate on both branches.
        feed_forward: Optional function (tokens, grid_size, name) that takes the MLP's place.
    """
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm1")(x)
    y = ConvolutionalProjectionAttention(
        num_heads,
        grid_size,
        class_token=class_token,
        key_strides=key_strides,
        shortcut=shortcut,
        attention_dropout=attention_dropout,
        dropout=dropout,
        name=f"{name}_attention",
    )(y)
    x = add_branch(x, y, drop_path, f"{name}_attention")
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm2")(x)
    if feed_forward is None:
        y = mlp(y, mlp_width, dropout=dropout, activation=quick_gelu, name=f"{name}_mlp")
    else:
        y = feed_forward(y, grid_size, f"{name}_feed_forward")
    return add_branch(x, y, drop_path, f"{name}_mlp")


def convolutional_stages(
    x,
    *,
    dims: Sequence[int],
    depths: Sequence[int],
    num_heads: Sequence[int],
    patch_sizes: Sequence[int],
    patch_strides: Sequence[int],
    patch_paddings: Sequence[int],
    key_strides: int,
    mlp_ratio: float,
    dropout: float,
    attention_dropout: float,
    drop_path: float,
    epsilon: float,
    after_embedding: Callable | None = None,
    shortcut: bool = False,
    feed_forward: Callable | None = None,
):
    """CvT from the normalised image to the normalised tokens of the last stage, class token first.

    The numbers are those of ``CvT``. The last three arguments are for its relatives:
    ``after_embedding`` is a function (map, name) of each stage's embedding before it is
    normalised; before the last stage ``shortcut`` makes projections residual, and
    ``feed_forward``, a function (tokens, grid_size, name), takes the MLPs' place.

    Raises:
        ValueError: Unless every sequence has a number for each stage.
    """
    stages = {
        "dims": dims,
        "depths": depths,
        "num_heads": num_heads,
        "patch_sizes": patch_sizes,
        "patch_strides": patch_strides,
        "patch_paddings": patch_paddings,
    }
    for argument, values in stages.items():
        if not values or len(values) != len(dims):
            raise ValueError(
                f"{argument} must have one number for each stage, as many as dims={dims}; got "
                f"{values}."
            )
    stride = 1
    for stage, dim in enumerate(dims):
        is_last = stage == len(dims) - 1
        prefix = f"stage{stage}"
        x = convolutional_embedding(
            x,
            dim,
            patch_sizes[stage],
            patch_strides[stage],
            patch_paddings[stage],
            name=f"{prefix}_embedding",
        )
        if after_embedding is not None:
            x = after_embedding(x, f"{prefix}_embedding")
        x = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{prefix}_embedding_norm")(x)
        grid_size = x.shape[1:3]
        stride *= patch_strides[stage]
        x = keras.layers.Reshape((-1, dim), name=f"{prefix}_tokens")(x)
        if is_last:
            x = ClassToken(name="class_token")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"{prefix}_dropout")(x)
        for i, rate in enumerate(linear_drop_path(drop_path if is_last else 0.0, depths[stage])):
            x = convolutional_block(
                x,
                grid_size=grid_size,
                num_heads=num_heads[stage],
                mlp_width=round(dim * mlp_ratio),
                class_token=is_last,
                key_strides=key_strides,
                shortcut=shortcut and not is_last,
                dropout=dropout,
                attention_dropout=attention_dropout,
                drop_path=rate,
                epsilon=epsilon,
                feed_forward=None if is_last else feed_forward,
                name=f"{prefix}_block{i}",
            )
        if not is_last:
            x = keras.layers.Reshape((*grid_size, dim), name=f"{prefix}_map")(x)
            if patch_strides[stage + 1] > 1:
                x = endpoint(x, stride)
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="norm")(x)
    return endpoint(x, stride, grid_size)


def CvT(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "cvt_13",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    dims: Sequence[int] = (64, 192, 384),
    depths: Sequence[int] = (1, 2, 10),
    num_heads: Sequence[int] = (1, 3, 6),
    patch_sizes: Sequence[int] = (7, 3, 3),
    patch_strides: Sequence[int] = (4, 2, 2),
    patch_paddings: Sequence[int] = (2, 1, 1),
    key_strides: int = 2,
    mlp_ratio: float = 4.0,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.1,
    epsilon: float = 1e-5,
) -> keras.Model:
    """Build a Convolutional vision Transformer; the defaults are CvT-13.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels), of any size; default (224, 224, 3).
        pooling: Without top: ``None`` for the last stage's tokens (batch, 1 + height · width,
            channels), ``"avg"`` or ``"max"`` over them, ``"native"`` for the class token.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ImageNet's statistics at every size, as the authors do. ``False``: already normalised.
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
        mlp_ratio: Hidden width of the MLP over the stage's.
        dropout: Rate on the embedded tokens and after both projections of a block.
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
        (224, 224, 3),
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
    _shape = (_variant.image_size, _variant.image_size, 3)
    register_model(
        CvT,
        ModelInfo(
            name=_name,
            family="convolutional_vision_transformer",
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
        depths=_variant.depths,
    )
