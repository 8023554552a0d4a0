"""Swin Transformer: attention within windows that shift from block to block.

Paper: Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"
(arXiv:2103.14030). Outputs are tested against timm's ``swin_tiny_patch4_window7_224``, which
computes what the authors' code does.

Choices: a window is never larger than the map, axis by axis, and an axis that fits in one window is
not shifted; a map that windows do not tile is refused, not padded. The cyclic shift is two
concatenations of slices for each axis, and no tensor has a rank above 4. In
``kh.explain.attention_maps`` a window counts as a sample, windows of an image row by row.

``swin_tiny_32`` is ours: Swin-T for images of 32 × 32. Patches of 2 × 2 make maps of 16 × 16,
8 × 8, 4 × 4 and 2 × 2, where the paper's would leave one token to the last stage. Windows of 4 × 4
tile them, which 7 × 7 do not. Others who train Swin on CIFAR choose the same numbers for both
(https://github.com/kentaroy47/vision-transformers-cifar10).
"""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
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
from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.attention import MultiHeadSelfAttention
from keras_hybrid.layers.channels_last import Conv2D
from keras_hybrid.layers.composite import CompositeLayer
from keras_hybrid.layers.position import RelativePositionBias
from keras_hybrid.layers.windows import merge_windows, partition_windows

__all__ = ["Swin"]

PAPER = "Liu et al. 2021, arXiv:2103.14030"
# Added to the logits between tokens that only the cyclic shift has made neighbours.
MASKED = -100.0


@dataclasses.dataclass(frozen=True)
class SwinVariant:
    """A row of the paper's section 3.3."""

    dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    drop_path: float
    parameters: int
    macs: int
    image_size: int = 224
    classes: int = 1000
    patch_size: int = 4
    window_size: int = 7
    ours: bool = False


VARIANTS = {
    "swin_tiny": SwinVariant(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2, 28_288_354, 4_490_566_656),
    "swin_tiny_32": SwinVariant(
        96,
        (2, 2, 6, 2),
        (3, 6, 12, 24),
        0.2,
        27_574_318,
        357_854_208,
        image_size=32,
        classes=100,
        patch_size=2,
        window_size=4,
        ours=True,
    ),
}


def _roll(x, offset: int, axis: int):
    """Move row ``offset`` of an axis to the front; what stood before it goes to the end."""
    if not offset:
        return x
    ahead = (slice(None),) * axis
    return ops.concatenate(
        [x[(*ahead, slice(offset, None))], x[(*ahead, slice(None, offset))]], axis=axis
    )


@keras.saving.register_keras_serializable(package="keras_hybrid")
class WindowPartition(keras.layers.Layer):
    """Shifts maps cyclically up and to the left, and cuts them into windows (paper, figure 4).

    Args:
        window_size: (height, width) of a window.
        shift: (rows, columns) that wander from the beginning to the end.

    Call arguments:
        inputs: Maps, shape (batch, height, width, channels), multiples of a window.

    Returns:
        Tokens of shape (batch · windows, tokens of a window, channels).
    """

    def __init__(self, window_size: tuple[int, int], shift: tuple[int, int] = (0, 0), **kwargs):
        super().__init__(**kwargs)
        self.window_size = tuple(window_size)
        self.shift = tuple(shift)
        self.built = True

    def call(self, inputs):
        x = _roll(_roll(inputs, self.shift[0], axis=1), self.shift[1], axis=2)
        return partition_windows(x, *self.window_size)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        tokens = self.window_size[0] * self.window_size[1]
        return (None if batch is None else batch * height * width // tokens, tokens, channels)

    def get_config(self):
        return {**super().get_config(), "window_size": self.window_size, "shift": self.shift}


@keras.saving.register_keras_serializable(package="keras_hybrid")
class WindowMerge(keras.layers.Layer):
    """Puts windows back into maps and undoes the shift: the inverse of ``WindowPartition``.

    Args:
        window_size: (height, width) of a window.
        map_size: (height, width) of the map.
        shift: (rows, columns) that ``WindowPartition`` shifted by.

    Call arguments:
        inputs: Tokens of shape (batch · windows, tokens of a window, channels).

    Returns:
        Maps, shape (batch, height, width, channels).
    """

    def __init__(
        self,
        window_size: tuple[int, int],
        map_size: tuple[int, int],
        shift: tuple[int, int] = (0, 0),
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.window_size = tuple(window_size)
        self.map_size = tuple(map_size)
        self.shift = tuple(shift)
        self.built = True

    def call(self, inputs):
        x = merge_windows(inputs, *self.window_size, *self.map_size)
        for axis, (size, shift) in enumerate(zip(self.map_size, self.shift, strict=True), start=1):
            x = _roll(x, (size - shift) % size, axis)
        return x

    def compute_output_shape(self, input_shape):
        batch, tokens, channels = input_shape
        height, width = self.map_size
        return (
            None if batch is None else batch * tokens // (height * width),
            *self.map_size,
            channels,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "window_size": self.window_size,
            "map_size": self.map_size,
            "shift": self.shift,
        }


@keras.saving.register_keras_serializable(package="keras_hybrid")
class ShiftedWindowBias(RelativePositionBias):
    """The relative position bias, and −100 between tokens that the shift made neighbours.

    Args:
        grid_size: (height, width) of a window.
        num_heads: Number of heads.
        map_size: (height, width) of the map.
        shift: (rows, columns) that the map was shifted by.

    Call arguments:
        inputs: Tokens of shape (batch · windows, tokens, channels); only their number is looked at.

    Returns:
        Logits of shape (windows, num_heads, tokens, tokens).
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        num_heads: int,
        map_size: tuple[int, int],
        shift: tuple[int, int],
        **kwargs,
    ):
        super().__init__(grid_size, num_heads, **kwargs)
        self.map_size = tuple(map_size)
        self.shift = tuple(shift)

    def build(self, input_shape):
        super().build(input_shape)
        regions = []
        for size, window, shift in zip(self.map_size, self.grid_size, self.shift, strict=True):
            # In the last window of a shifted axis begins what came from the other side.
            regions.append(np.arange(size) >= (size - shift if shift else size))
            regions[-1] = regions[-1] + 2 * (np.arange(size) // window)
        rows, columns = regions
        region = rows[:, np.newaxis] * (columns.max() + 1) + columns
        height, width = self.grid_size
        region = region.reshape(self.map_size[0] // height, height, -1, width)
        region = region.transpose(0, 2, 1, 3).reshape(-1, height * width)
        apart = region[:, :, np.newaxis] != region[:, np.newaxis, :]
        self._mask = np.where(apart, MASKED, 0.0)[:, np.newaxis].astype("float32")

    def call(self, inputs):
        bias = super().call(inputs)
        return bias + ops.convert_to_tensor(self._mask, dtype=bias.dtype)

    def compute_output_shape(self, input_shape):
        height, width = self.map_size
        windows = height * width // (self.grid_size[0] * self.grid_size[1])
        return (windows, *super().compute_output_shape(input_shape)[1:])

    def get_config(self):
        return {**super().get_config(), "map_size": self.map_size, "shift": self.shift}


@keras.saving.register_keras_serializable(package="keras_hybrid")
class PatchMerging(CompositeLayer):
    """Halves a map: 2 × 2 neighbours side by side, normalised, projected to twice the channels.

    Paper, section 3.1; the neighbours stand in the order (0, 0), (1, 0), (0, 1), (1, 1) of
    (row, column), as in the authors' code.

    Args:
        epsilon: Of the layer normalisation.

    Call arguments:
        inputs: Maps, shape (batch, height, width, channels), height and width even.

    Returns:
        Maps, shape (batch, height / 2, width / 2, 2 · channels).
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        shape = (*self.compute_output_shape(input_shape)[:3], 4 * channels)
        self.norm = keras.layers.LayerNormalization(
            epsilon=self.epsilon, dtype=self.dtype_policy, name="norm"
        )
        self.norm.build(shape)
        self.reduction = keras.layers.Dense(
            2 * channels,
            use_bias=False,
            kernel_initializer=RandomNormal(stddev=0.02),
            dtype=self.policy_within("reduction"),
            name="reduction",
        )
        self.reduction.build(shape)

    def call(self, inputs):
        neighbours = [inputs[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(ops.concatenate(neighbours, axis=-1)))

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, height // 2, width // 2, 2 * channels)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


def swin_block(
    x,
    *,
    num_heads,
    window_size,
    is_shifted,
    mlp_ratio,
    qkv_bias,
    dropout,
    attention_dropout,
    drop_path,
    epsilon,
    name,
):
    """A pre-norm encoder block on a map whose attention stays within windows (paper, eq. 3)."""
    map_size = tuple(x.shape[1:3])
    window = tuple(min(size, window_size) for size in map_size)
    shift = (0, 0)
    if is_shifted:
        shift = tuple(window_size // 2 if size > window_size else 0 for size in map_size)
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm1")(x)
    y = WindowPartition(window, shift, name=f"{name}_windows")(y)
    if any(shift):
        bias = ShiftedWindowBias(window, num_heads, map_size, shift, name=f"{name}_bias")(y)
    else:
        bias = RelativePositionBias(window, num_heads, name=f"{name}_bias")(y)
    y = MultiHeadSelfAttention(
        num_heads,
        qkv_bias=qkv_bias,
        attention_dropout=attention_dropout,
        dropout=dropout,
        name=f"{name}_attention",
    )(y, attention_bias=bias)
    y = WindowMerge(window, map_size, shift, name=f"{name}_map")(y)
    x = add_branch(x, y, drop_path, f"{name}_attention")
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm2")(x)
    y = mlp(y, round(x.shape[-1] * mlp_ratio), dropout=dropout, name=f"{name}_mlp")
    return add_branch(x, y, drop_path, f"{name}_mlp")


def _check_size(image, patch_size: int, stages: int, window_size: int) -> None:
    height, width = image.shape[1:3]
    stride = patch_size * 2 ** (stages - 1)
    if height % stride or width % stride:
        raise ValueError(f"input_shape must be a multiple of {stride}, got {height}x{width}.")
    for stage in range(stages):
        stride = patch_size * 2**stage
        for size in (height // stride, width // stride):
            if size > window_size and size % window_size:
                raise ValueError(
                    f"input_shape={height}x{width} gives stage {stage} a side of {size}, which is "
                    f"larger than window_size={window_size} and no multiple of it."
                )


def Swin(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "swin",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    patch_size: int = 4,
    dim: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int = 7,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.2,
    epsilon: float = 1e-5,
) -> keras.Model:
    """Build a Swin Transformer.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); height and width multiples of
            ``patch_size · 2^(stages − 1)`` that windows tile; default (224, 224, 3).
        pooling: Without top: ``None`` for the last map (batch, height, width, channels),
            ``"avg"`` or ``"max"`` over it, ``"native"`` for the average.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ImageNet's statistics. ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        patch_size: Side of a patch in pixels.
        dim: Channels of the first stage; each further stage has twice as many.
        depths: Blocks of each stage. Every second block of a stage is shifted.
        num_heads: Heads of each stage.
        window_size: Side of a window in tokens.
        mlp_ratio: Hidden width of the MLP over the channels.
        qkv_bias: Whether queries, keys and values have a bias.
        dropout: Rate on the embedded patches and after both projections of a block.
        attention_dropout: Rate on the attention maps.
        drop_path: Rate of the last block; earlier ones rise linearly from 0.
        epsilon: Of the layer normalisations.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    if len(depths) != len(num_heads):
        raise ValueError(
            f"depths and num_heads must have one number for each stage, got {tuple(depths)} and "
            f"{tuple(num_heads)}."
        )
    check_counts(depths=depths, window_size=window_size)
    inputs, x = image_input(
        input_tensor,
        input_shape,
        (224, 224, 3),
        include_preprocessing=include_preprocessing,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    _check_size(x, patch_size, len(depths), window_size)
    x = Conv2D(
        dim,
        patch_size,
        strides=patch_size,
        padding="valid",
        kernel_initializer=RandomNormal(stddev=0.02),
        name="patch_embedding",
    )(x)
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="patch_norm")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="patch_dropout")(x)
    rates = iter(linear_drop_path(drop_path, sum(depths)))
    for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        if stage:
            x = endpoint(x, patch_size * 2 ** (stage - 1))
            x = PatchMerging(epsilon, name=f"stage{stage}_merging")(x)
        for i in range(depth):
            x = swin_block(
                x,
                num_heads=heads,
                window_size=window_size,
                is_shifted=i % 2 == 1,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                dropout=dropout,
                attention_dropout=attention_dropout,
                drop_path=next(rates),
                epsilon=epsilon,
                name=f"stage{stage}_block{i}",
            )
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="norm")(x)
    x = endpoint(x, patch_size * 2 ** (len(depths) - 1))
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
    )


for _name, _variant in VARIANTS.items():
    _shape = (_variant.image_size, _variant.image_size, 3)
    register_model(
        Swin,
        ModelInfo(
            name=_name,
            family="swin",
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
        patch_size=_variant.patch_size,
        window_size=_variant.window_size,
        dim=_variant.dim,
        depths=_variant.depths,
        num_heads=_variant.num_heads,
        drop_path=_variant.drop_path,
    )
