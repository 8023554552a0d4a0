"""SAN: networks of local self-attention, pairwise and patchwise, without spatial convolutions.

Papers: Zhao, Jia & Koltun 2020, "Exploring Self-attention for Image Recognition"
(arXiv:2004.13621): SAN10, SAN15 and SAN19. Panja & Agrawal 2024, a report that compares SAN10, made
narrow, with a network of its own on CIFAR-10: ``san_baseline_*`` and ``san_proposed_*``. Outputs
are tested against both groups' code, which we follow where the report's text differs: its baseline
has no max pooling (``max_pooling=True`` for the text's, which needs images of at least 128 pixels,
or smaller footprints) and its proposed network no ReLU before the average (``final_relu=True``).
The baseline's script was not published; that it has SAN10's depths and footprints is our reading.

A footprint of 7×7 reflects three pixels at the border of a map, so SAN10 needs images of 128 pixels
and more, unless ``kernel_sizes`` are smaller.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable, Sequence

import keras
import numpy as np
from keras import ops

from keras_hybrid.applications.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_model,
    check_counts,
    image_input,
)
from keras_hybrid.applications.convolution import he_normal
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.layers.channels_last import Conv2D, MaxPooling2D
from keras_hybrid.layers.normalization import BatchNormalization

__all__ = ["SAN", "PairwiseAttention", "PatchwiseAttention"]

PAPER = "Zhao et al. 2020, arXiv:2004.13621"
REPORT = "Panja & Agrawal 2024, pairwise and patchwise self-attention (project report, ECE 176)"
RELATIONS = ("subtraction", "summation", "concatenation", "hadamard", "dot")
KINDS = ("pairwise", "patchwise")


@dataclasses.dataclass(frozen=True)
class SANVariant:
    """What makes a registered model, and its numbers."""

    paper: str
    arguments: dict
    image_size: int
    classes: int
    parameters: int
    macs: int


_SAN10, _SAN15, _SAN19 = (2, 1, 2, 4, 1), (3, 2, 3, 5, 2), (3, 3, 4, 6, 3)
_HALF = {"mean": 127.5, "std": 127.5}
_BASELINE = {"stem_channels": 16, "widths": (16,) * 5, "max_pooling": False, **_HALF}
_PROPOSED = {
    "stem_channels": 128,
    "depths": (2, 1, 2, 2),
    "widths": (128,) * 4,
    "kernel_sizes": (3, 7, 7, 7),
    "transitions": False,
    "dropout": 0.3,
    **_HALF,
}


def _imagenet(attention, depths, parameters, macs):
    arguments = {"attention": attention, "depths": depths}
    return SANVariant(PAPER, arguments, 224, 1000, parameters, macs)


def _cifar(attention, arguments, parameters, macs):
    return SANVariant(REPORT, {"attention": attention, **arguments}, 32, 10, parameters, macs)


VARIANTS = {
    "san10_pairwise": _imagenet("pairwise", _SAN10, 10_560_592, 2_009_323_396),
    "san10_patchwise": _imagenet("patchwise", _SAN10, 11_914_972, 1_756_702_720),
    "san15_pairwise": _imagenet("pairwise", _SAN15, 14_104_936, 2_804_165_528),
    "san15_patchwise": _imagenet("patchwise", _SAN15, 16_289_242, 2_423_692_288),
    "san19_pairwise": _imagenet("pairwise", _SAN19, 17_646_232, 3_563_232_172),
    "san19_patchwise": _imagenet("patchwise", _SAN19, 20_660_242, 3_057_114_112),
    "san_baseline_pairwise": _cifar("pairwise", _BASELINE, 4_772, 4_718_752),
    "san_baseline_patchwise": _cifar("patchwise", _BASELINE, 7_462, 3_848_352),
    "san_proposed_pairwise": _cifar("pairwise", _PROPOSED, 80_936, 103_986_432),
    "san_proposed_patchwise": _cifar("patchwise", _PROPOSED, 102_230, 86_951_168),
}


class _FootprintAttention(keras.layers.Layer):
    """What both kinds share: the projections, the footprint and the weighted sum over it.

    ``y_i = Σ_j α_ij ⊙ β(x_j)``, j over the k×k footprint around i, reflected at the border. Maps
    are shifted by slicing a padded map, so only α and what it is computed from have k² places.
    """

    _default_relation = ""

    def __init__(
        self,
        relation_dim: int,
        value_dim: int,
        kernel_size: int = 7,
        share: int = 8,
        relation: str | None = None,
        kernel_initializer="he_normal",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be an odd positive integer, got {kernel_size}.")
        self.relation = relation or self._default_relation
        if self.relation not in RELATIONS:
            raise ValueError(f"relation must be one of {RELATIONS}, got {relation!r}.")
        if share < 1 or value_dim % share:
            raise ValueError(f"share={share} must divide value_dim={value_dim}.")
        self.relation_dim = relation_dim
        self.value_dim = value_dim
        self.kernel_size = kernel_size
        self.share = share
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        height, width = input_shape[1:3]
        if min(height, width) <= self.kernel_size // 2:
            raise ValueError(
                f"input_shape is too small: a footprint of kernel_size={self.kernel_size} reflects "
                f"{self.kernel_size // 2} pixels, and a map has only {height}x{width}."
            )
        self._weight_dim = self.value_dim // self.share
        self.query = self._convolution(input_shape, self.relation_dim, "query")
        self.key = self._convolution(input_shape, self.relation_dim, "key")
        self.value = self._convolution(input_shape, self.value_dim, "value")

    def _convolution(self, shape, channels, name, use_bias=True):
        layer = Conv2D(
            channels,
            1,
            data_format="channels_last",
            use_bias=use_bias,
            kernel_initializer=self.kernel_initializer.clone(),
            dtype=self.dtype_policy,
            name=name,
        )
        layer.build(shape)
        return layer

    def _build_mapping(self, channels, hidden, outputs):
        """Build γ: BN, ReLU, linear, BN, ReLU, linear."""
        shape = (None, None, None, channels)
        self.relation_norm = self._norm(shape, "relation_norm")
        self.reduce = self._convolution(shape, hidden, "reduce", use_bias=False)
        shape = (*shape[:-1], hidden)
        self.reduced_norm = self._norm(shape, "reduced_norm")
        self.expand = self._convolution(shape, outputs, "expand")

    def _norm(self, shape, name):
        layer = BatchNormalization(epsilon=1e-5, momentum=0.9, dtype=self.dtype_policy, name=name)
        layer.build(shape)
        return layer

    def _mapped(self, x, training):
        x = ops.relu(self.relation_norm(x, training=training))
        return self.expand(ops.relu(self.reduced_norm(self.reduce(x), training=training)))

    def _shifts(self, x):
        """Return the map as each place of the footprint sees it, row by row."""
        _, height, width, _ = x.shape
        radius = self.kernel_size // 2
        x = _reflect(x, radius)
        return [
            x[:, dy : dy + height, dx : dx + width, :]
            for dy in range(self.kernel_size)
            for dx in range(self.kernel_size)
        ]

    def _related(self, query, key):
        """Return δ(query, key), place by place."""
        if self.relation == "subtraction":
            return query - key
        if self.relation == "summation":
            return query + key
        if self.relation == "concatenation":
            return ops.concatenate([query, key], axis=-1)
        product = query * key
        return product if self.relation == "hadamard" else ops.sum(product, -1, keepdims=True)

    def footprint_weights(self, inputs, training=False):
        """Return α, a list over the footprint (row by row) of (batch, height · width, 1, weights).

        Args:
            inputs: Map, as in the call.
            training: Whether batch normalisation takes the batch's own statistics.
        """
        raise NotImplementedError

    def call(self, inputs, training=False):
        _, height, width, _ = inputs.shape
        # Channel c has the weight c mod weights, so channels fold into (share, weights).
        folded = (-1, height * width, self.share, self._weight_dim)
        weights = self.footprint_weights(inputs, training)
        values = self._shifts(self.value(inputs))
        products = (
            weight * ops.reshape(value, folded)
            for weight, value in zip(weights, values, strict=True)
        )
        return ops.reshape(_sum_in_pairs(products), (-1, height, width, self.value_dim))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.value_dim)

    def get_config(self):
        return {
            **super().get_config(),
            "relation_dim": self.relation_dim,
            "value_dim": self.value_dim,
            "kernel_size": self.kernel_size,
            "share": self.share,
            "relation": self.relation,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _sum_in_pairs(terms: Iterable):
    """Return the sum of tensors, added as a tree: in int8 each addition rounds.

    At most log₂ of them are alive at a time. The error of k² roundings, one after the other, grows
    with their number, that of the tree with its depth.
    """
    sums = []  # (number of terms, their sum), each of twice the terms of the next
    for term in terms:
        count = 1
        while sums and sums[-1][0] == count:
            term = sums.pop()[1] + term
            count *= 2
        sums.append((count, term))
    return functools.reduce(operator.add, (total for _, total in reversed(sums)))


def _reflect(x, radius: int):
    """Pad rows and columns with their reflections, without repeating the border."""
    for axis in (1, 2):
        size = x.shape[axis]
        before = [_slice(x, axis, i, i + 1) for i in range(radius, 0, -1)]
        after = [_slice(x, axis, size - 1 - i, size - i) for i in range(1, radius + 1)]
        if radius:
            x = ops.concatenate([*before, x, *after], axis=axis)
    return x


def _slice(x, axis: int, start: int, stop: int):
    return x[:, start:stop, :, :] if axis == 1 else x[:, :, start:stop, :]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class PairwiseAttention(_FootprintAttention):
    """Local attention whose weights compare the centre of a footprint with each place in it.

    ``α_ij = softmax_j γ([δ(φ(x_i), ψ(x_j)); p_i − p_j])`` and ``y_i = Σ_j α_ij ⊙ β(x_j)`` (Zhao et
    al. 2020, eqs. 2 and 3 and section 3.1), where p is a linear map of the normalised column and
    row, and γ is BN, ReLU, linear, BN, ReLU, linear. φ and ψ have ``relation_dim`` channels, β has
    ``value_dim``.

    Args:
        relation_dim: Channels of φ and ψ.
        value_dim: Channels of the output.
        kernel_size: Side k of the footprint, odd.
        share: Output channels that share a weight; α has value_dim / share channels, and output
            channel c takes number c mod that.
        relation: δ: ``"subtraction"`` (the default), ``"summation"``, ``"concatenation"``,
            ``"hadamard"`` or ``"dot"``.
        kernel_initializer: Of all linear maps.

    Call arguments:
        inputs: Map, shape (batch, height, width, channels), height and width fixed.

    Returns:
        Tensor of shape (batch, height, width, value_dim).

    Raises:
        ValueError: If an argument is out of range, or the map is too small to be reflected.
    """

    _default_relation = "subtraction"

    def build(self, input_shape):
        super().build(input_shape)
        _, height, width, _ = input_shape
        columns, rows = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        self._places = np.stack([columns, rows], axis=-1)[np.newaxis].astype("float32")
        self.position = self._convolution((1, height, width, 2), 2, "position")
        channels = {"concatenation": 2 * self.relation_dim, "dot": 1}.get(
            self.relation, self.relation_dim
        )
        self._build_mapping(channels + 2, self.relation_dim, self._weight_dim)

    def footprint_weights(self, inputs, training=False):
        _, height, width, _ = inputs.shape
        query, area = self.query(inputs), self.kernel_size**2
        # The footprint's places lie below one another: batch normalisation sees them all at once.
        relation = ops.concatenate(
            [self._related(query, key) for key in self._shifts(self.key(inputs))], axis=1
        )
        place = self.position(ops.convert_to_tensor(self._places, dtype=self.compute_dtype))
        offset = ops.concatenate([place - other for other in self._shifts(place)], axis=1)
        # Adding zeros broadcasts over a dynamic batch without a dynamic shape.
        offset = offset + ops.zeros_like(relation[..., :1])
        logits = self._mapped(ops.concatenate([relation, offset], axis=-1), training)
        logits = ops.reshape(logits, (-1, area, height * width * self._weight_dim))
        weights = ops.softmax(logits, axis=1)
        shape = (-1, height * width, 1, self._weight_dim)
        return [ops.reshape(weights[:, j : j + 1, :], shape) for j in range(area)]


@keras.saving.register_keras_serializable(package="keras_hybrid")
class PatchwiseAttention(_FootprintAttention):
    """Local attention whose weights are computed from the whole footprint at once.

    ``α_i = γ([φ(x_i); ψ(x_j) for all j])`` and ``y_i = Σ_j α_ij ⊙ β(x_j)`` (Zhao et al. 2020, eqs.
    4 and 5), where γ is BN, ReLU, linear, BN, ReLU, linear and puts out the weights of all places:
    no softmax and no positions, since each place has columns of its own in γ.

    Args:
        relation_dim: Channels of φ and ψ.
        value_dim: Channels of the output.
        kernel_size: Side k of the footprint, odd.
        share: Output channels that share a weight, as in `PairwiseAttention`.
        relation: What γ sees of the footprint: ``"concatenation"`` (the default) of φ(x_i) and all
            ψ(x_j); with ``"subtraction"``, ``"summation"``, ``"hadamard"`` or ``"dot"`` (the
            paper's star product) δ(φ(x_i), ψ(x_j)) for all j.
        kernel_initializer: Of all linear maps.

    Call arguments:
        inputs: Map, shape (batch, height, width, channels), height and width fixed.

    Returns:
        Tensor of shape (batch, height, width, value_dim).

    Raises:
        ValueError: If an argument is out of range, or the map is too small to be reflected.
    """

    _default_relation = "concatenation"

    def build(self, input_shape):
        super().build(input_shape)
        area = self.kernel_size**2
        channels = {"concatenation": self.relation_dim * (area + 1), "dot": area}.get(
            self.relation, self.relation_dim * area
        )
        self._build_mapping(channels, self._weight_dim, area * self._weight_dim)

    def footprint_weights(self, inputs, training=False):
        _, height, width, _ = inputs.shape
        query, keys = self.query(inputs), self._shifts(self.key(inputs))
        if self.relation == "concatenation":
            relation = [query, *keys]
        else:
            relation = [self._related(query, key) for key in keys]
        weights = self._mapped(ops.concatenate(relation, axis=-1), training)
        shape = (-1, height * width, 1, self._weight_dim)
        parts = ops.split(weights, self.kernel_size**2, axis=-1)
        return [ops.reshape(part, shape) for part in parts]


_ATTENTION = {"pairwise": PairwiseAttention, "patchwise": PatchwiseAttention}


def _norm_relu(x, name: str):
    x = BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _linear(x, channels: int, use_bias: bool, name: str):
    return Conv2D(
        channels, 1, use_bias=use_bias, kernel_initializer=he_normal("fan_in"), name=name
    )(x)


def attention_block(
    x,
    *,
    attention: str,
    relation: str | None,
    kernel_size: int,
    relation_reduction: int,
    value_reduction: int,
    share: int,
    dropout: float,
    name: str,
):
    """A residual block: x + W ReLU BN attention(ReLU BN x)."""
    channels = x.shape[-1]
    value_dim = max(1, channels // value_reduction)
    y = _norm_relu(x, f"{name}_input")
    y = _ATTENTION[attention](
        max(1, channels // relation_reduction),
        value_dim,
        kernel_size,
        min(share, value_dim),
        relation,
        he_normal("fan_in"),
        name=f"{name}_attention",
    )(y)
    y = _norm_relu(y, f"{name}_output")
    y = _linear(y, channels, True, f"{name}_conv")
    if dropout:
        y = keras.layers.Dropout(dropout, name=f"{name}_dropout")(y)
    return keras.layers.Add(name=f"{name}_add")([x, y])


def SAN(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "san",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    attention: str = "pairwise",
    relation: str | None = None,
    stem_channels: int = 64,
    depths: Sequence[int] = _SAN10,
    widths: Sequence[int] = (64, 256, 512, 1024, 2048),
    kernel_sizes: Sequence[int] = (3, 7, 7, 7, 7),
    transitions: bool = True,
    max_pooling: bool = True,
    final_relu: bool = False,
    relation_reduction: int = 16,
    value_reduction: int = 4,
    share: int = 8,
    dropout: float = 0.0,
    mean: float | Sequence[float] = IMAGENET_MEAN,
    std: float | Sequence[float] = IMAGENET_STD,
) -> keras.Model:
    """Build a self-attention network.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); default (224, 224, 3).
        pooling: Without top: ``None`` for the last map (batch, height, width, channels), ``"avg"``
            or ``"max"`` over it, ``"native"`` for the average, which the classifier sees.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], which the model maps to
            (x − ``mean``) / ``std``. ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        attention: ``"pairwise"`` or ``"patchwise"``.
        relation: ``None`` for the kind's own (subtraction; concatenation), or any of
            ``"subtraction"``, ``"summation"``, ``"concatenation"``, ``"hadamard"``, ``"dot"``.
        stem_channels: Channels of the stem.
        depths: Blocks of each stage.
        widths: Channels of each stage.
        kernel_sizes: Side of each stage's footprints, odd.
        transitions: Whether a stage begins with [max pooling and] a linear map and ends with BN and
            ReLU. ``False``: blocks back to back, all as wide as the stem.
        max_pooling: Whether transitions halve the map.
        final_relu: Whether a ReLU stands before the average, without transitions.
        relation_reduction: Channels of a block over those of the relation.
        value_reduction: Channels of a block over those of the attention's output.
        share: Channels of the attention's output that share a weight, where there are so many.
        dropout: Rate at the end of each block, before the addition.
        mean: Of the normalisation, in units of [0, 255]; one number, or one for each channel.
        std: Likewise.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    if attention not in KINDS:
        raise ValueError(f"attention must be one of {KINDS}, got {attention!r}.")
    if not depths or not len(depths) == len(widths) == len(kernel_sizes):
        raise ValueError(
            "depths, widths and kernel_sizes must have one number for each stage, got "
            f"{tuple(depths)}, {tuple(widths)} and {tuple(kernel_sizes)}."
        )
    if not transitions and set(widths) != {stem_channels}:
        raise ValueError(
            f"Without transitions all widths must be stem_channels={stem_channels}, got "
            f"widths={tuple(widths)}."
        )
    check_counts(depths=depths)
    inputs, x = image_input(
        input_tensor,
        input_shape,
        (224, 224, 3),
        include_preprocessing=include_preprocessing,
        mean=mean,
        std=std,
    )
    x = _linear(x, stem_channels, False, "stem_conv")
    x = _norm_relu(x, "stem")
    stride = 1
    stages = zip(depths, widths, kernel_sizes, strict=True)
    for stage, (depth, width, kernel_size) in enumerate(stages):
        if transitions:
            if max_pooling:
                x = endpoint(x, stride)
                stride *= 2
                x = MaxPooling2D(2, name=f"stage{stage}_pool")(x)
            x = _linear(x, width, False, f"stage{stage}_conv")
        for i in range(depth):
            x = attention_block(
                x,
                attention=attention,
                relation=relation,
                kernel_size=kernel_size,
                relation_reduction=relation_reduction,
                value_reduction=value_reduction,
                share=share,
                dropout=dropout,
                name=f"stage{stage}_block{i}",
            )
        if transitions:
            x = _norm_relu(x, f"stage{stage}")
    if final_relu and not transitions:
        x = keras.layers.ReLU(name="final_relu")(x)
    x = endpoint(x, stride)
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
        SAN,
        ModelInfo(
            name=_name,
            family="san",
            paper=_variant.paper,
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
