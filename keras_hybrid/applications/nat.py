"""NAT: each query attends to its nearest k × k keys.

Paper: Hassani et al. 2023, "Neighborhood Attention Transformer" (arXiv:2204.07143). At a border the
neighbourhood slides inward, so that it always has k² real keys. Outputs are tested against the
authors' code with a plain implementation of the operator.

How the attention is computed: the map is cut into tiles of at most k × k queries, and each tile
attends to the one block of at most (2k − 1) × (2k − 1) keys that holds all its neighbourhoods; the
bias hides the keys of the block outside a query's own neighbourhood. That is slices, concatenations
and two batched matrix products: no gather of neighbours, no convolution with an identity, no tensor
of rank 5. With k = 7 and tiles of 7 × 7, keys and values are held (13 / 7)² = 3.4 times, where k²
shifted copies would be 49 times, and each query has 169 logits instead of 49; on a 7 × 7 map both
are exact. NAT-Mini computes 3.01 G multiply-accumulates that way, NAT-Tiny 4.75 G; the registered
counts are the paper's, without the hidden keys.

``nat_mini_32`` is ours: NAT-Mini for images of 32 × 32. The tokenizer's second convolution does not
halve, which makes maps of 16 × 16, 8 × 8, 4 × 4 and 2 × 2. Neighbourhoods are 3 × 3: of the 7 × 7
keys that a query of the last two maps would have, 33 and 45 would be the zeros they are filled up
with; of 3 × 3 it is none and 5.
"""

import dataclasses
import math
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
from keras_hybrid.initializers import RandomNormal, VarianceScaling
from keras_hybrid.layers.channels_last import Conv2D
from keras_hybrid.layers.composite import CompositeLayer
from keras_hybrid.layers.windows import merge_windows, partition_windows

__all__ = ["NAT"]

PAPER = "Hassani et al. 2023, arXiv:2204.07143"
# The logit of a hidden key: its share underflows to zero, in half precision, too.
HIDDEN = -1e4


@dataclasses.dataclass(frozen=True)
class NATVariant:
    """A row of the paper's table of variants, with the authors' code's layer scale."""

    dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: float
    drop_path: float
    layer_scale: float | None
    parameters: int
    macs: int
    image_size: int = 224
    classes: int = 1000
    stem_strides: tuple[int, int] = (2, 2)
    kernel_size: int = 7
    ours: bool = False


VARIANTS = {
    "nat_mini": NATVariant(
        64, (3, 4, 6, 5), (2, 4, 8, 16), 3.0, 0.2, None, 19_984_174, 2_694_812_672
    ),
    "nat_mini_32": NATVariant(
        64,
        (3, 4, 6, 5),
        (2, 4, 8, 16),
        3.0,
        0.2,
        None,
        19_500_874,
        236_436_480,
        image_size=32,
        classes=100,
        stem_strides=(2, 1),
        kernel_size=3,
        ours=True,
    ),
    "nat_tiny": NATVariant(
        64, (3, 4, 18, 5), (2, 4, 8, 16), 3.0, 0.2, None, 27_901_582, 4_295_226_368
    ),
    "nat_small": NATVariant(
        96, (3, 4, 18, 5), (3, 6, 12, 24), 2.0, 0.3, 1e-5, 50_743_297, 7_772_302_848
    ),
    "nat_base": NATVariant(
        128, (3, 4, 18, 5), (4, 8, 16, 32), 2.0, 0.5, 1e-5, 89_769_652, 13_677_094_912
    ),
}


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the queries and keys along one axis of a map are cut.

    Attributes:
        tile: Queries of a tile, the largest divisor of the axis up to the kernel's size.
        starts: First key of each tile's block.
        block: Keys of a block.
        kind: Which row of ``offsets`` a tile has. Tiles inside the map are alike.
        offsets: Key − query + kernel − 1 for each kind, query and key of the block, or −1 for a key
            outside the query's neighbourhood; shape (kinds, tile, block).
    """

    tile: int
    starts: tuple[int, ...]
    block: int
    kind: tuple[int, ...]
    offsets: np.ndarray


def tiling(size: int, kernel: int) -> Tiling:
    """Cut an axis of ``size`` tokens, at least ``kernel``, into tiles of queries."""
    tile = max(n for n in range(1, kernel + 1) if size % n == 0)
    block = min(tile + kernel - 1, size)
    queries = np.arange(size).reshape(-1, tile)
    starts = np.clip(queries[:, 0] - kernel // 2, 0, size - block)
    first = np.clip(queries - kernel // 2, 0, size - kernel)[:, :, np.newaxis]
    keys = (starts[:, np.newaxis] + np.arange(block))[:, np.newaxis, :]
    offsets = keys - queries[:, :, np.newaxis] + kernel - 1
    offsets = np.where((keys >= first) & (keys < first + kernel), offsets, -1)
    offsets, kind = np.unique(offsets, axis=0, return_inverse=True)
    return Tiling(tile, tuple(starts.tolist()), block, tuple(kind.reshape(-1).tolist()), offsets)


def _take_slices(x, starts, length: int, axis: int):
    """Put the slices that begin at ``starts`` one behind the other."""
    ahead = (slice(None),) * axis
    return ops.concatenate([x[(*ahead, slice(n, n + length))] for n in starts], axis=axis)


@keras.saving.register_keras_serializable(package="keras_hybrid")
class NeighborhoodAttention(CompositeLayer):
    """Multi-head attention of each query to its nearest k × k keys, with a relative bias.

    ``softmax(d^-0.5 Q Kᵀ + B) V`` over a neighbourhood that begins at
    ``clamp(i − k // 2, 0, size − k)`` on either axis; ``B`` is read from a table of (2k − 1)²
    offsets key − query. A map smaller than k is filled up with zeros at the right and the bottom,
    which count as keys.

    Args:
        num_heads: Number of heads.
        kernel_size: Side of the neighbourhood, odd.
        qkv_bias: Whether queries, keys and values have a bias.
        attention_dropout: Rate on the attention maps.
        dropout: Rate on the output.

    Call arguments:
        inputs: Maps, shape (batch, height, width, channels).

    Returns:
        Maps, shape (batch, height, width, channels).

    Raises:
        ValueError: If ``num_heads`` is not positive or does not divide the channels, or
            ``kernel_size`` is not odd.
    """

    def __init__(
        self,
        num_heads: int,
        kernel_size: int = 7,
        qkv_bias: bool = True,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"num_heads must be a positive integer, got {num_heads}.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}.")
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.qkv_bias = qkv_bias
        self.attention_dropout = attention_dropout
        self.dropout = dropout

    def build(self, input_shape):
        _, height, width, channels = input_shape
        if channels % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide the {channels} channels of the input."
            )
        initializer = RandomNormal(stddev=0.02)
        self.qkv = keras.layers.Dense(
            3 * channels,
            use_bias=self.qkv_bias,
            kernel_initializer=initializer,
            dtype=self.policy_within("qkv"),
            name="qkv",
        )
        self.qkv.build(input_shape)
        self.projection = keras.layers.Dense(
            channels,
            kernel_initializer=initializer.clone(),  # draws of its own
            dtype=self.policy_within("projection"),
            name="projection",
        )
        self.projection.build(input_shape)
        self.attention_dropout_layer = keras.layers.Dropout(
            self.attention_dropout, dtype=self.dtype_policy
        )
        self.dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)
        offsets = 2 * self.kernel_size - 1
        self.table = self.add_weight(
            name="table", shape=(offsets**2, self.num_heads), initializer=initializer.clone()
        )
        self._map_size = (max(height, self.kernel_size), max(width, self.kernel_size))
        rows, columns = (tiling(size, self.kernel_size) for size in self._map_size)
        self._tilings = (rows, columns)
        self._tiles = len(rows.starts) * len(columns.starts)
        self._queries = rows.tile * columns.tile
        self._keys = rows.block * columns.block
        # (row kinds, column kinds, query rows, query columns, key rows, key columns)
        dy = rows.offsets[:, np.newaxis, :, np.newaxis, :, np.newaxis]
        dx = columns.offsets[np.newaxis, :, np.newaxis, :, np.newaxis, :]
        index = np.where((dy < 0) | (dx < 0), offsets**2, dy * offsets + dx)
        self._index = index.astype("int32").reshape(-1)

    @property
    def hidden_products(self) -> int:
        """Multiply-accumulates of one image that are spent on hidden keys."""
        hidden = self._keys - self.kernel_size**2
        return 2 * math.prod(self._map_size) * hidden * self.projection.units

    def _bias(self):
        """Logits of shape (1, tiles · heads, queries, keys) of a tile and its block."""
        rows, columns = self._tilings
        table = ops.cast(self.table, self.compute_dtype)
        table = ops.concatenate([table, ops.zeros_like(table[:1]) + HIDDEN], axis=0)
        x = ops.take(table, self._index, axis=0)
        x = ops.reshape(x, (-1, self._queries * self._keys, self.num_heads))
        x = ops.transpose(x, (0, 2, 1))
        x = ops.reshape(x, (len(rows.offsets), len(columns.offsets), -1))
        x = _take_slices(_take_slices(x, rows.kind, 1, axis=0), columns.kind, 1, axis=1)
        return ops.reshape(x, (1, -1, self._queries, self._keys))

    def _split_heads(self, x, tokens: int):
        """(batch · tiles, tokens, channels) → (batch, tiles · heads, tokens, head width)."""
        width = x.shape[-1] // self.num_heads
        x = ops.transpose(ops.reshape(x, (-1, tokens, self.num_heads, width)), (0, 2, 1, 3))
        return ops.reshape(x, (-1, self._tiles * self.num_heads, tokens, width))

    def call(self, inputs, training=None):
        _, height, width, channels = inputs.shape
        rows, columns = self._tilings
        below, right = self._map_size[0] - height, self._map_size[1] - width
        x = inputs
        if below or right:
            x = ops.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
        x = self.qkv(x)
        query, key_value = x[..., :channels], x[..., channels:]
        query = partition_windows(query, rows.tile, columns.tile)
        key_value = _take_slices(key_value, rows.starts, rows.block, axis=1)
        key_value = _take_slices(key_value, columns.starts, columns.block, axis=2)
        key_value = partition_windows(key_value, rows.block, columns.block)
        query = self._split_heads(query, self._queries) * (channels // self.num_heads) ** -0.5
        key = self._split_heads(key_value[..., :channels], self._keys)
        value = self._split_heads(key_value[..., channels:], self._keys)
        logits = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) + self._bias()
        scores = self.attention_dropout_layer(ops.softmax(logits, axis=-1), training=training)
        x = ops.reshape(ops.matmul(scores, value), (-1, self.num_heads, *query.shape[-2:]))
        x = ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, self._queries, channels))
        x = merge_windows(x, rows.tile, columns.tile, *self._map_size)
        x = self.dropout_layer(self.projection(x), training=training)
        return x[:, :height, :width, :] if below or right else x

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "kernel_size": self.kernel_size,
            "qkv_bias": self.qkv_bias,
            "attention_dropout": self.attention_dropout,
            "dropout": self.dropout,
        }


@keras.saving.register_keras_serializable(package="keras_hybrid")
class LayerScale(keras.layers.Layer):
    """Multiplies each channel by a learned factor (Touvron et al. 2021, arXiv:2103.17239, eq. 3).

    Args:
        initial_value: That all factors start from.

    Call arguments:
        inputs: Tensor of shape (batch, …, channels).
    """

    def __init__(self, initial_value: float, **kwargs):
        super().__init__(**kwargs)
        self.initial_value = initial_value

    def build(self, input_shape):
        self.scale = self.add_weight(
            name="scale",
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.initial_value),
        )

    def call(self, inputs):
        return inputs * ops.cast(self.scale, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {**super().get_config(), "initial_value": self.initial_value}


def neighborhood_block(
    x,
    *,
    num_heads,
    kernel_size,
    mlp_ratio,
    qkv_bias,
    dropout,
    attention_dropout,
    drop_path,
    layer_scale,
    epsilon,
    name,
):
    """A pre-norm encoder block on a map, with neighbourhood attention."""
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm1")(x)
    y = NeighborhoodAttention(
        num_heads,
        kernel_size,
        qkv_bias=qkv_bias,
        attention_dropout=attention_dropout,
        dropout=dropout,
        name=f"{name}_neighborhood_attention",
    )(y)
    if layer_scale is not None:
        y = LayerScale(layer_scale, name=f"{name}_attention_scale")(y)
    x = add_branch(x, y, drop_path, f"{name}_attention")
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm2")(x)
    y = mlp(y, round(x.shape[-1] * mlp_ratio), dropout=dropout, name=f"{name}_mlp")
    if layer_scale is not None:
        y = LayerScale(layer_scale, name=f"{name}_mlp_scale")(y)
    return add_branch(x, y, drop_path, f"{name}_mlp")


def _convolution(x, width: int, name: str, *, use_bias: bool, strides: int = 2):
    """A convolution 3 × 3 that pads symmetrically and, by default, halves the map."""
    x = keras.layers.ZeroPadding2D(1, name=f"{name}_padding")(x)
    return Conv2D(
        width,
        3,
        strides=strides,
        padding="valid",
        use_bias=use_bias,
        # PyTorch's own: uniform within ±1 / √fan-in.
        kernel_initializer=VarianceScaling(1 / 3, "fan_in", "uniform"),
        name=name,
    )(x)


def NAT(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "nat",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    stem_strides: Sequence[int] = (2, 2),
    dim: int = 64,
    depths: Sequence[int] = (3, 4, 6, 5),
    num_heads: Sequence[int] = (2, 4, 8, 16),
    kernel_size: int = 7,
    mlp_ratio: float = 3.0,
    qkv_bias: bool = True,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.2,
    layer_scale: float | None = None,
    epsilon: float = 1e-5,
) -> keras.Model:
    """Build a Neighborhood Attention Transformer; the defaults are NAT-Mini.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels), any size; default (224, 224, 3). Tiles are largest,
            and attention cheapest, where ``kernel_size`` divides the sides of the maps.
        pooling: Without top: ``None`` for the last map (batch, height, width, channels),
            ``"avg"`` or ``"max"`` over it, ``"native"`` for the average.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ImageNet's statistics. ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        stem_strides: Of the tokenizer's two convolutions, each 1 or 2.
        dim: Channels of the first stage; each further stage has twice as many.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        kernel_size: Side of a neighbourhood in tokens, odd.
        mlp_ratio: Hidden width of the MLP over the channels.
        qkv_bias: Whether queries, keys and values have a bias.
        dropout: Rate on the embedded tokens and after both projections of a block.
        attention_dropout: Rate on the attention maps.
        drop_path: Rate of the last block; earlier ones rise linearly from 0.
        layer_scale: Initial factor of both branches of a block, for each channel; ``None``:
            without.
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
    if len(stem_strides) != 2 or not set(stem_strides) <= {1, 2}:
        raise ValueError(
            f"stem_strides must be two numbers, each 1 or 2, got {tuple(stem_strides)}."
        )
    check_counts(depths=depths)
    inputs, x = image_input(
        input_tensor,
        input_shape,
        (224, 224, 3),
        include_preprocessing=include_preprocessing,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    for i, (width, strides) in enumerate(zip((dim // 2, dim), stem_strides, strict=True), 1):
        x = _convolution(x, width, f"tokenizer_conv{i}", use_bias=True, strides=strides)
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="tokenizer_norm")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="tokenizer_dropout")(x)
    rates = iter(linear_drop_path(drop_path, sum(depths)))
    for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        if stage:
            x = endpoint(x, math.prod(stem_strides) * 2 ** (stage - 1))
            x = _convolution(x, 2 * x.shape[-1], f"stage{stage}_downsampling", use_bias=False)
            x = keras.layers.LayerNormalization(
                epsilon=epsilon, name=f"stage{stage}_downsampling_norm"
            )(x)
        for i in range(depth):
            x = neighborhood_block(
                x,
                num_heads=heads,
                kernel_size=kernel_size,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                dropout=dropout,
                attention_dropout=attention_dropout,
                drop_path=next(rates),
                layer_scale=layer_scale,
                epsilon=epsilon,
                name=f"stage{stage}_block{i}",
            )
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="norm")(x)
    x = endpoint(x, math.prod(stem_strides) * 2 ** (len(depths) - 1))
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
        NAT,
        ModelInfo(
            name=_name,
            family="nat",
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
        stem_strides=_variant.stem_strides,
        kernel_size=_variant.kernel_size,
        dim=_variant.dim,
        depths=_variant.depths,
        num_heads=_variant.num_heads,
        mlp_ratio=_variant.mlp_ratio,
        drop_path=_variant.drop_path,
        layer_scale=_variant.layer_scale,
    )
