"""BoTNet-50: ResNet-50 with self-attention in place of the last stage's 3×3 convolutions.

Paper: Srinivas et al. 2021, "Bottleneck Transformers for Visual Recognition" (arXiv:2101.11605). No
complete network was published; the attention layer's output is tested against timm's
``BottleneckAttn``. Choices:

- ``last_stride=1``, the paper's BoTNet-S1-50 and its network for classification: all three layers
  attend within a 14×14 map of a 224×224 image. ``last_stride=2`` is ResNet-50's own layout, with a
  2×2 average pooling after the first attention layer, as the paper describes it.
- Position logits are scaled like the content logits, and one pair of tables serves all heads, as in
  the attention code that the paper's first author published (``scale_position=False``: timm's
  default).
- Batch normalisation and ReLU after the attention, where the convolution's were; the shortcut is
  ResNet-50's.
"""

import dataclasses
from collections.abc import Sequence

import keras
from keras import ops

from keras_hybrid.applications.base import build_model
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.imagenet import keras_form
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.applications.resnet import (
    DEPTHS,
    STEMS,
    WIDTHS,
    bottleneck,
    check_stages,
    imagenet_weights,
    normalization,
    residual_stages,
    stem_input,
    stem_layers,
)
from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.composite import CompositeLayer
from keras_hybrid.layers.dot_product import attend, attention_map

__all__ = ["BoTNet", "BottleneckAttention"]

PAPER = "Srinivas et al. 2021, arXiv:2101.11605"


@dataclasses.dataclass(frozen=True)
class BoTNetVariant:
    """What makes a registered model, and its numbers."""

    arguments: dict
    image_size: int
    classes: int
    parameters: int
    macs: int
    ours: bool = False


VARIANTS = {
    "botnet50": BoTNetVariant({}, 224, 1000, 20_912_296, 5_410_217_984),
    "botnet50_stride2": BoTNetVariant({"last_stride": 2}, 224, 1000, 20_905_128, 4_021_346_304),
    "botnet50_cifar": BoTNetVariant(
        {"stem": "cifar"}, 32, 10, 18_866_890, 1_702_055_936, ours=True
    ),
}


@keras.saving.register_keras_serializable(package="keras_hybrid")
class BottleneckAttention(CompositeLayer):
    """Self-attention over a map with relative positions, without an output projection.

    ``softmax(scale · (q · k + q · (r_height + r_width))) v`` (Srinivas et al., figure 4), where a
    query at row y sees a key at row y' with the row ``y' − y + height − 1`` of the height table,
    and likewise for columns.

    Args:
        num_heads: Number of heads, a divisor of the channels.
        scale_position: Whether ``scale`` = head_dim^-0.5 is also on the position logits.

    Call arguments:
        inputs: Map, shape (batch, height, width, channels), height and width fixed.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: If ``num_heads`` does not divide the channels.
    """

    def __init__(self, num_heads: int = 4, scale_position: bool = True, **kwargs):
        super().__init__(**kwargs)
        if num_heads < 1:
            raise ValueError(f"num_heads must be a positive integer, got {num_heads}.")
        self.num_heads = num_heads
        self.scale_position = scale_position

    def build(self, input_shape):
        _, height, width, channels = input_shape
        if channels % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide the {channels} channels of the map."
            )
        self._head_dim = channels // self.num_heads
        self.qkv = keras.layers.Dense(
            3 * channels,
            use_bias=False,
            kernel_initializer=RandomNormal(stddev=channels**-0.5),
            dtype=self.policy_within("qkv"),
            name="qkv",
        )
        self.qkv.build((None, height * width, channels))
        self.height_table, self.width_table = (
            self.add_weight(
                name=name,
                shape=(2 * length - 1, self._head_dim),
                initializer=RandomNormal(stddev=self._head_dim**-0.5),
            )
            for name, length in (("height_table", height), ("width_table", width))
        )

    def _axis_logits(self, query, table):
        """Return q · r along the second axis of ``query``: (…, axis, other, head_dim) → keys."""
        length = query.shape[1]
        table = ops.transpose(ops.cast(table, self.compute_dtype))
        # Of each query's position, the vectors of all keys: (axis, head_dim, keys).
        vectors = ops.stack(
            [table[:, length - 1 - i : 2 * length - 1 - i] for i in range(length)], axis=0
        )
        return ops.matmul(query, vectors)

    def _position_logits(self, query, height, width):
        """Return q · (r_height + r_width), shape (batch, heads, tokens, tokens)."""
        tokens = height * width
        query = ops.reshape(query, (-1, height, width, self._head_dim))
        rows = self._axis_logits(query, self.height_table)
        columns = self._axis_logits(ops.transpose(query, (0, 2, 1, 3)), self.width_table)
        columns = ops.transpose(columns, (0, 2, 1, 3))
        rows = ops.reshape(rows, (-1, tokens, height, 1))
        columns = ops.reshape(columns, (-1, tokens, 1, width))
        return ops.reshape(rows + columns, (-1, self.num_heads, tokens, tokens))

    def _heads(self, inputs):
        """Return queries, keys and values, each (batch, tokens, heads, head_dim), and logits."""
        _, height, width, channels = inputs.shape
        tokens = height * width
        qkv = ops.split(self.qkv(ops.reshape(inputs, (-1, tokens, channels))), 3, axis=-1)
        shape = (-1, tokens, self.num_heads, self._head_dim)
        query, key, value = (ops.reshape(x, shape) for x in qkv)
        scaled = query * self._head_dim**-0.5 if self.scale_position else query
        logits = self._position_logits(ops.transpose(scaled, (0, 2, 1, 3)), height, width)
        return query, key, value, logits

    def attention_scores(self, inputs):
        """Return the attention map, shape (batch, num_heads, queries, keys), each row summing to 1.

        Args:
            inputs: Map, as in the call; its cells are numbered row by row.
        """
        query, key, _, logits = self._heads(inputs)
        return attention_map(query, key, self._head_dim**-0.5, logits)

    def call(self, inputs):
        query, key, value, logits = self._heads(inputs)
        x = attend(query, key, value, self._head_dim**-0.5, logits)
        return ops.reshape(x, (-1, *inputs.shape[1:]))

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "scale_position": self.scale_position,
        }


def attention_bottleneck(
    x, width: int, *, strides: int, num_heads: int, scale_position: bool, name: str
):
    """A bottleneck with attention where the 3×3 convolution was; a stride is average pooling."""
    if strides > 1 and (x.shape[1] % strides or x.shape[2] % strides):
        raise ValueError(
            f"input_shape gives a map of {x.shape[1]}x{x.shape[2]} before the last stage, whose "
            f"height and width must be a multiple of last_stride={strides}."
        )

    def attention(y, strides):
        y = BottleneckAttention(num_heads, scale_position, name=f"{name}_attention")(y)
        if strides > 1:
            y = keras.layers.AveragePooling2D(strides, name=f"{name}_attention_pool")(y)
        return normalization(y, f"{name}_attention_norm")

    return bottleneck(x, width, strides=strides, spatial=attention, name=name)


def BoTNet(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "botnet",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    stem: str = "imagenet",
    stem_channels: int = 64,
    depths: Sequence[int] = DEPTHS,
    widths: Sequence[int] = WIDTHS,
    last_stride: int = 1,
    num_heads: int = 4,
    scale_position: bool = True,
    keras_trunk: bool | None = None,
) -> keras.Model:
    """Build a Bottleneck Transformer: a residual network whose last stage attends.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, ``"imagenet"`` for Keras's of ResNet-50 in all stages before the
            attention, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); default (224, 224, 3), or (32, 32, 3) for the CIFAR
            stem. The position tables grow with the map; ``transfer_weights`` interpolates them.
        pooling: Without top: ``None`` for the last map (batch, height, width, channels), ``"avg"``
            or ``"max"`` over it, ``"native"`` for the average, which the classifier sees.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ImageNet's statistics, or CIFAR-10's for the CIFAR stem, or as ``keras_trunk`` says.
            ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        stem: ``"imagenet"``: 7×7 convolution of stride 2 and max pooling. ``"cifar"``: 3×3
            convolution, no pooling.
        stem_channels: Channels of the stem.
        depths: Blocks of each stage; those of the last attend.
        widths: Width of each stage's bottlenecks; their output has four times as many channels.
        last_stride: Stride of the last stage, 1 or 2.
        num_heads: Heads of each attention layer.
        scale_position: Whether the position logits are scaled like the content logits.
        keras_trunk: Whether the trunk is that of ``keras.applications``, as for ``ResNet``;
            ``None``: if its weights are asked for. Say so when you load them from a file.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    check_stages(stem, depths, widths)
    if last_stride not in (1, 2):
        raise ValueError(f"last_stride must be 1 or 2, got {last_stride}.")
    keras_trunk = keras_form(weights, keras_trunk)
    inputs, image = stem_input(input_tensor, input_shape, stem, include_preprocessing, keras_trunk)
    x = stem_layers(image, stem, stem_channels)
    stride = STEMS[stem]
    if len(depths) > 1:
        x = residual_stages(x, depths[:-1], widths[:-1], stride, stride_in_first=keras_trunk)[-1]
        stride *= 2 ** (len(depths) - 2)
    if last_stride > 1:
        x = endpoint(x, stride)
    for i in range(depths[-1]):
        x = attention_bottleneck(
            x,
            widths[-1],
            strides=last_stride if i == 0 else 1,
            num_heads=num_heads,
            scale_position=scale_position,
            name=f"stage{len(depths)}_block{i}",
        )
    x = endpoint(x, stride * last_stride)
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
        imagenet=imagenet_weights(image, stem, stem_channels, depths[:-1], widths[:-1]),
    )


for _name, _variant in VARIANTS.items():
    _shape = (_variant.image_size, _variant.image_size, 3)
    register_model(
        BoTNet,
        ModelInfo(
            name=_name,
            family="botnet",
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
        **_variant.arguments,
    )
