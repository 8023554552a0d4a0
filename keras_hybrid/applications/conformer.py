"""Conformer: a residual network and a vision transformer side by side, coupled at every block.

Paper: Peng et al. 2021, "Conformer: Local Features Coupling Global Representations for Visual
Recognition" (arXiv:2105.03889). Layout, epsilons and initialisation are those of the authors'
code, to which both heads' outputs are tested.

**Two heads, one output.** Each branch has a classifier of its own, and the authors add their
logits up to classify. So does this model: ``embedding`` is the pooled map beside the class token,
``predictions`` the sum of a linear map of either part. For one head's logits, and for a loss on
each, which is how the authors train, call ``model.get_layer("predictions").heads(embedding)``, or
its parts ``convolution`` and ``transformer``. Cosine classifiers and projected embeddings take
both parts together.

Without top the last map and the last tokens become one tensor: beside each patch's token stands
the map at its place (repeated where the map is coarser), beside the class token the map's mean.

``conformer_ti_32`` is ours: Conformer-Ti for images of 32 × 32, with the stem that residual
networks have there, a 3 × 3 convolution without stride or pooling, in place of two halvings. Its
maps are 32 × 32, 16 × 16, 8 × 8 and at last 4 × 4, beside 8 × 8 tokens, which a kernel of the
same size as at 224 cuts from the stem's map.
"""

import dataclasses
import functools
from collections.abc import Sequence

import keras
from keras import ops

from keras_hybrid.applications.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_model,
    check_counts,
    check_patches,
    image_input,
    linear_drop_path,
    transformer_block,
)
from keras_hybrid.applications.convolution import he_normal
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.applications.resnet import STEMS
from keras_hybrid.initializers import RandomUniform
from keras_hybrid.layers.channels_last import Conv2D, MaxPooling2D
from keras_hybrid.layers.composite import CompositeLayer
from keras_hybrid.layers.normalization import BatchNormalization
from keras_hybrid.layers.tokens import ClassToken

__all__ = ["Conformer"]

PAPER = "Peng et al. 2021, arXiv:2105.03889"
# PyTorch's default, which the authors leave in the stem and before the transformer's head.
OUTER_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class ConformerVariant:
    """The numbers that make a size."""

    stage_channels: tuple[int, ...]
    parameters: int
    macs: int
    image_size: int = 224
    classes: int = 1000
    stem: str = "imagenet"
    patch_size: int = 16
    ours: bool = False


VARIANTS = {
    "conformer_ti": ConformerVariant((64, 128, 256), 23_537_664, 5_225_936_896),
    "conformer_ti_32": ConformerVariant(
        (64, 128, 256),
        22_952_184,
        1_605_967_360,
        image_size=32,
        classes=100,
        stem="cifar",
        patch_size=4,
        ours=True,
    ),
    "conformer_s": ConformerVariant((256, 512, 1024), 37_724_880, 10_599_350_272),
}


@keras.saving.register_keras_serializable(package="keras_hybrid")
class TwoHeads(CompositeLayer):
    """Two linear classifiers, each of its part of the embedding, added up.

    ``activation(x[:, :n] W₁ + b₁ + x[:, n:] W₂ + b₂)``, Peng et al. 2021, section 3.2.

    Args:
        first_width: Width n of the first part, the convolutional branch's.
        units: Number of classes.
        activation: Of the sum.
        kernel_initializer: For both classifiers.

    Call arguments:
        inputs: Embeddings, shape (batch, dim), dim > n.

    Returns:
        Tensor of shape (batch, units).
    """

    def __init__(
        self,
        first_width: int,
        units: int,
        activation=None,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.first_width = first_width
        self.units = units
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self.convolution, self.transformer = (
            keras.layers.Dense(
                self.units,
                kernel_initializer=self.kernel_initializer.clone(),
                dtype=self.policy_within(name),
                name=name,
            )
            for name in ("convolution", "transformer")
        )
        self.convolution.build((None, self.first_width))
        self.transformer.build((None, input_shape[-1] - self.first_width))

    def heads(self, inputs):
        """Return the logits of the convolutional and of the transformer branch, unadded.

        Args:
            inputs: Embeddings, as in the call.
        """
        return (
            self.convolution(inputs[:, : self.first_width]),
            self.transformer(inputs[:, self.first_width :]),
        )

    def call(self, inputs):
        convolution, transformer = self.heads(inputs)
        return self.activation(convolution + transformer)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "first_width": self.first_width,
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


def _conv(x, channels: int, kernel_size: int, strides: int, name: str, *, bias=False, padding=0):
    # Keras pads strided convolutions on one side.
    if padding and strides > 1:
        x = keras.layers.ZeroPadding2D(padding, name=f"{name}_padding")(x)
    # PyTorch's default for a bias.
    bound = (kernel_size**2 * x.shape[-1]) ** -0.5
    return Conv2D(
        channels,
        kernel_size,
        strides=strides,
        padding="same" if strides == 1 else "valid",
        use_bias=bias,
        kernel_initializer=he_normal(),
        bias_initializer=RandomUniform(-bound, bound),
        name=name,
    )(x)


def _batch_norm(x, epsilon: float, name: str):
    return BatchNormalization(epsilon=epsilon, momentum=0.9, name=name)(x)


def bottleneck(
    x, channels: int, *, epsilon: float, name: str, strides=1, project=False, coupling=None
):
    """A residual network's bottleneck, 1 × 1, 3 × 3, 1 × 1.

    Args:
        x: Map, shape (batch, height, width, any channels).
        channels: Of the output; the 3 × 3 convolution has a quarter of them.
        epsilon: Of the batch normalisations.
        name: Prefix of the layers' names.
        strides: Of the 3 × 3 convolution.
        project: Whether a 1 × 1 convolution is on the shortcut.
        coupling: Optional map that is added before the 3 × 3 convolution.

    Returns:
        The output, and the map between the last two convolutions.
    """
    shortcut = x
    x = _conv(x, channels // 4, 1, 1, f"{name}_conv1")
    x = _batch_norm(x, epsilon, f"{name}_norm1")
    x = keras.layers.ReLU(name=f"{name}_relu1")(x)
    if coupling is not None:
        x = keras.layers.Add(name=f"{name}_coupling")([x, coupling])
    x = _conv(x, channels // 4, 3, strides, f"{name}_conv2", padding=1)
    x = _batch_norm(x, epsilon, f"{name}_norm2")
    hidden = keras.layers.ReLU(name=f"{name}_relu2")(x)
    x = _conv(hidden, channels, 1, 1, f"{name}_conv3")
    x = _batch_norm(x, epsilon, f"{name}_norm3")
    if project:
        shortcut = _conv(shortcut, channels, 1, strides, f"{name}_shortcut_conv")
        shortcut = _batch_norm(shortcut, epsilon, f"{name}_shortcut_norm")
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu3")(x), hidden


def couple_down(x, tokens, ratio: int, *, epsilon: float, name: str):
    """Add the map to the tokens: GELU(LN(mean over ratio × ratio of its 1 × 1 convolution)).

    As in the authors' code the class token is added to itself.
    """
    dim = tokens.shape[-1]
    x = _conv(x, dim, 1, 1, f"{name}_conv", bias=True)
    if ratio > 1:
        x = keras.layers.AveragePooling2D(ratio, name=f"{name}_pool")(x)
    x = keras.layers.Reshape((-1, dim), name=f"{name}_tokens")(x)
    x = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm")(x)
    x = keras.layers.Activation("gelu", name=f"{name}_gelu")(x)
    x = keras.layers.Concatenate(axis=1, name=f"{name}_class_token")([tokens[:, :1], x])
    return keras.layers.Add(name=f"{name}_add")([x, tokens])


def couple_up(tokens, grid_size, channels: int, ratio: int, *, epsilon: float, name: str):
    """Make a map of the patches' tokens: ReLU(BN(1 × 1 convolution)), repeated ratio × ratio."""
    x = keras.layers.Reshape((*grid_size, tokens.shape[-1]), name=f"{name}_map")(tokens[:, 1:])
    x = _conv(x, channels, 1, 1, f"{name}_conv", bias=True)
    x = _batch_norm(x, epsilon, f"{name}_norm")
    x = keras.layers.ReLU(name=f"{name}_relu")(x)
    return _repeat(x, ratio)


def _repeat(x, ratio: int):
    """Repeat each cell ratio × ratio times; `ops.image.resize` needs a known batch in ONNX."""
    if ratio == 1:
        return x
    height, width, channels = x.shape[1:]
    rows = ops.reshape(x, (-1, height, 1, width * channels))
    rows = ops.concatenate([rows] * ratio, axis=2)
    cells = ops.reshape(rows, (-1, height * ratio * width, 1, channels))
    cells = ops.concatenate([cells] * ratio, axis=2)
    return ops.reshape(cells, (-1, height * ratio, width * ratio, channels))


def _stem(x, stem: str, channels: int):
    """A quarter of the image's side by convolution and pooling, or all of it."""
    is_whole = stem == "cifar"
    kernel_size, strides = (3, 1) if is_whole else (7, 2)
    x = _conv(x, channels, kernel_size, strides, "stem_conv", padding=kernel_size // 2)
    x = _batch_norm(x, OUTER_EPSILON, "stem_norm")
    x = keras.layers.ReLU(name="stem_relu")(x)
    if is_whole:
        return x
    x = endpoint(x, 2)
    # After a ReLU padding with zeros equals padding with minus infinity.
    x = keras.layers.ZeroPadding2D(1, name="stem_pool_padding")(x)
    return MaxPooling2D(3, strides=2, name="stem_pool")(x)


def join(x, tokens, grid_size: tuple[int, int]):
    """Put each place of the map beside its token and the map's mean beside the class token."""
    channels = x.shape[-1]
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True, name="pooled_map")(x)
    mean = keras.layers.Reshape((1, channels), name="pooled_map_token")(mean)
    if tuple(x.shape[1:3]) != tuple(grid_size):
        # The last bottleneck rounded an odd grid's half up.
        x = _repeat(x, 2)[:, : grid_size[0], : grid_size[1]]
    x = keras.layers.Reshape((-1, channels), name="map_tokens")(x)
    x = keras.layers.Concatenate(axis=1, name="map_features")([mean, x])
    return keras.layers.Concatenate(axis=-1, name="features")([x, tokens])


def Conformer(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "conformer_ti",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    stem: str = "imagenet",
    patch_size: int = 16,
    stem_channels: int = 64,
    stage_channels: Sequence[int] = (64, 128, 256),
    depths: Sequence[int] = (4, 4, 4),
    dim: int = 384,
    num_heads: int = 6,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.1,
    epsilon: float = 1e-6,
) -> keras.Model:
    """Build a Conformer; the defaults are Conformer-Ti.

    Args:
        include_top: Whether to end in the ``predictions`` layer, the sum of both branches' heads.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels), multiples of ``patch_size``; default
            (224, 224, 3).
        pooling: Without top: ``None`` for tokens (batch, 1 + patches, last stage's channels +
            dim), ``"avg"`` or ``"max"`` over them, ``"native"`` for the first of them: the map's
            mean and the class token.
        classes: Number of classes.
        classifier_activation: Of the dense classifier; ``None`` for logits.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ImageNet's statistics. ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        stem: ``"imagenet"``: 7×7 convolution of stride 2 and max pooling. ``"cifar"``: 3×3
            convolution.
        patch_size: Side of a token's patch in pixels: 4 or 8 times 2^(stages − 1), so 16 or 32;
            behind the CIFAR stem 4 or 8.
        stem_channels: Of the first convolution.
        stage_channels: Of each stage's maps, multiples of 4.
        depths: Blocks of each stage. The very first one is not coupled.
        dim: Width of a token.
        num_heads: Heads of each transformer block.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        dropout: Rate after both projections of a transformer block.
        attention_dropout: Rate on the attention maps.
        drop_path: Rate of the last transformer block; earlier ones rise linearly from 0.
        epsilon: Of the normalisations in blocks and couplings; the stem's and the class token's
            are 1e-5.

    Returns:
        A Functional model from (batch, height, width, channels) to logits (batch, classes),
        float32.

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    if not stage_channels or len(stage_channels) != len(depths):
        raise ValueError(
            f"stage_channels and depths must have one number for each stage, got {stage_channels} "
            f"and {depths}."
        )
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {tuple(STEMS)}, got {stem!r}.")
    stem_stride = STEMS[stem]
    smallest = stem_stride * 2 ** (len(depths) - 1)
    if patch_size not in (smallest, 2 * smallest):
        raise ValueError(
            f"patch_size must be {smallest} or {2 * smallest} for {len(depths)} stages behind "
            f"stem={stem!r}, got {patch_size}."
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
    check_patches(x, patch_size)
    grid_size = tuple(n // patch_size for n in x.shape[1:3])
    x = _stem(x, stem, stem_channels)
    # Pixels of the map along one side of a patch.
    ratio = patch_size // stem_stride
    tokens = _conv(x, dim, ratio, ratio, "patch_embedding", bias=True)
    tokens = keras.layers.Reshape((-1, dim), name="tokens")(tokens)
    tokens = ClassToken(name="class_token")(tokens)

    stride = stem_stride
    rates = linear_drop_path(drop_path, sum(depths))
    for stage, (channels, depth) in enumerate(zip(stage_channels, depths, strict=True)):
        for i in range(depth):
            index = sum(depths[:stage]) + i
            prefix = f"block{index}"
            strides = 2 if stage and i == 0 else 1
            ratio //= strides
            if strides > 1:
                x = endpoint(x, stride)
                stride *= 2
            x, hidden = bottleneck(
                x,
                channels,
                strides=strides,
                project=i == 0,
                epsilon=epsilon,
                name=f"{prefix}_bottleneck",
            )
            if index:
                tokens = couple_down(hidden, tokens, ratio, epsilon=epsilon, name=f"{prefix}_down")
            tokens = transformer_block(
                tokens,
                num_heads=num_heads,
                mlp_width=round(dim * mlp_ratio),
                qkv_bias=qkv_bias,
                dropout=dropout,
                attention_dropout=attention_dropout,
                drop_path=rates[index],
                epsilon=epsilon,
                name=prefix,
            )
            if index:
                is_last = index == len(rates) - 1
                if is_last:
                    x = endpoint(x, stride)
                    stride *= 2
                coupling = couple_up(
                    tokens, grid_size, channels // 4, ratio, epsilon=epsilon, name=f"{prefix}_up"
                )
                x, _ = bottleneck(
                    x,
                    channels,
                    strides=2 if is_last else 1,
                    project=is_last,
                    coupling=coupling,
                    epsilon=epsilon,
                    name=f"{prefix}_fusion",
                )
    tokens = keras.layers.LayerNormalization(epsilon=OUTER_EPSILON, name="norm")(tokens)
    x = endpoint(x, stride)
    features = join(x, tokens, grid_size)
    # A projection mixes the two parts, which leaves one head.
    is_split = embedding_dim is None
    return build_model(
        inputs,
        features,
        lambda: features[:, 0],
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier=classifier,
        classifier_activation=classifier_activation,
        weights=weights,
        name=name,
        embedding_dim=embedding_dim,
        dense=functools.partial(TwoHeads, x.shape[-1]) if is_split else keras.layers.Dense,
    )


for _name, _variant in VARIANTS.items():
    _shape = (_variant.image_size, _variant.image_size, 3)
    register_model(
        Conformer,
        ModelInfo(
            name=_name,
            family="conformer",
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
        stem=_variant.stem,
        patch_size=_variant.patch_size,
        stage_channels=_variant.stage_channels,
    )
