"""ConViT: attention that begins as a convolution and may leave it.

Paper: d'Ascoli et al. 2021, "ConViT: Improving Vision Transformers with Soft Convolutional
Inductive Biases" (arXiv:2103.10697). Outputs are tested against timm's ``convit_*``, which computes
what the authors' code does: absolute positions are added to the patches besides the relative ones,
the class token joins after the gated blocks, and queries, keys and values have no bias.

Choice: positional scores are computed in float32 under every dtype policy, because squared
distances lose digits in half precision. A mixture of two distributions sums to 1, so the authors'
renormalisation is left out.

``convit_ti_32`` is ours: ConViT-Ti for images of 32 × 32. Patches of 4 × 4 make 8 × 8 tokens, as in
the ViT-Lite and the Compact Vision Transformer of this zoo.
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
    check_patches,
    image_input,
    linear_drop_path,
    mlp,
    transformer_block,
)
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.attention import MultiHeadSelfAttention
from keras_hybrid.layers.channels_last import Conv2D
from keras_hybrid.layers.position import LearnedPositionEmbedding
from keras_hybrid.layers.tokens import ClassToken

__all__ = ["ConViT"]

PAPER = "d'Ascoli et al. 2021, arXiv:2103.10697"


@dataclasses.dataclass(frozen=True)
class ConViTVariant:
    """A size of the paper."""

    dim: int
    num_heads: int
    parameters: int
    macs: int
    image_size: int = 224
    classes: int = 1000
    patch_size: int = 16
    ours: bool = False


VARIANTS = {
    "convit_ti": ConViTVariant(192, 4, 5_710_512, 1_252_360_320),
    "convit_ti_32": ConViTVariant(
        192, 4, 5_373_228, 360_697_344, image_size=32, classes=100, patch_size=4, ours=True
    ),
    "convit_s": ConViTVariant(432, 9, 27_777_322, 5_746_563_360),
    "convit_b": ConViTVariant(768, 16, 86_540_040, 17_505_452_544),
}


@keras.saving.register_keras_serializable(package="keras_hybrid")
class GatedPositionalSelfAttention(MultiHeadSelfAttention):
    """Attention to content and to position, mixed by one learned gate for each head.

    ``(1 − σ(λ)) softmax(scale · QKᵀ) + σ(λ) softmax(r v + b)`` (paper, eqs. 7 and 8), where r is
    (Δx, Δy, Δx² + Δy²) of key − query. It begins as a √heads × √heads convolution:
    each head's ``v`` makes it look at another neighbour, and the value projection is the identity.

    Args:
        num_heads: Number of heads.
        grid_size: (height, width) of the grid whose row-major cells are the tokens.
        locality_strength: α of the paper, how narrowly a head looks at first.
        **kwargs: As of ``MultiHeadSelfAttention``.

    Call arguments:
        inputs: Tokens, shape (batch, height · width, channels).
        attention_bias: Optional logits of the content's softmax, broadcastable to (batch,
            num_heads, tokens, tokens).

    Returns:
        Tensor of shape (batch, height · width, channels).
    """

    def __init__(
        self,
        num_heads: int,
        grid_size: tuple[int, int],
        locality_strength: float = 1.0,
        **kwargs,
    ):
        super().__init__(num_heads, **kwargs)
        self.grid_size = tuple(grid_size)
        self.locality_strength = locality_strength

    def build(self, inputs_shape, attention_bias_shape=None):
        super().build(inputs_shape, attention_bias_shape)
        self.position = keras.layers.Dense(
            self.num_heads,
            kernel_initializer=self._neighbours,
            dtype=self.policy_within("position", "float32"),
            name="position",
        )
        self.position.build((1, None, 3))
        self.gate = self.add_weight(name="gate", shape=(self.num_heads,), initializer="ones")
        row, column = np.divmod(np.arange(math.prod(self.grid_size)), self.grid_size[1])
        dy, dx = (axis[np.newaxis] - axis[:, np.newaxis] for axis in (row, column))
        offsets = np.stack([dx, dy, dx**2 + dy**2], axis=-1)
        self._offsets = offsets.reshape(1, -1, 3).astype("float32")

    def _build_query_key_value(self, inputs_shape, inner):
        def dense(width, initializer, name):
            layer = keras.layers.Dense(
                width,
                use_bias=self.qkv_bias,
                kernel_initializer=initializer,
                dtype=self.policy_within(name),
                name=name,
            )
            layer.build(inputs_shape)
            return layer

        self.query_key = dense(2 * inner, self.kernel_initializer.clone(), "query_key")
        self.value = dense(inner, keras.initializers.Identity(), "value")

    def _query_key_value(self, inputs):
        return (*ops.split(self.query_key(inputs), 2, axis=-1), self.value(inputs))

    def _neighbours(self, shape, dtype=None):
        """Kernel (3, heads) with which head ``y + side · x`` looks at the neighbour (y, x)."""
        side = math.isqrt(self.num_heads)
        kernel = np.zeros(shape)
        for head in range(side**2):
            x, y = (index - (side - 1) / 2 for index in divmod(head, side))
            kernel[:, head] = (2 * x, 2 * y, -1)
        return ops.convert_to_tensor(self.locality_strength * kernel, dtype=dtype)

    def position_scores(self):
        """Return where each head looks whatever it sees, shape (1, heads, tokens, tokens)."""
        tokens = math.prod(self.grid_size)
        logits = self.position(ops.convert_to_tensor(self._offsets))
        logits = ops.reshape(logits, (1, tokens, tokens, self.num_heads))
        return ops.softmax(ops.transpose(logits, (0, 3, 1, 2)), axis=-1)

    def _mix(self):
        def gated(content, gate, position):
            gate = ops.reshape(ops.sigmoid(ops.cast(gate, content.dtype)), (1, -1, 1, 1))
            return (1.0 - gate) * content + gate * ops.cast(position, content.dtype)

        return gated, (ops.convert_to_tensor(self.gate), self.position_scores())

    def get_config(self):
        return {
            **super().get_config(),
            "grid_size": self.grid_size,
            "locality_strength": self.locality_strength,
        }


def gated_block(
    x,
    *,
    grid_size,
    num_heads,
    locality_strength,
    mlp_width,
    qkv_bias,
    dropout,
    attention_dropout,
    drop_path,
    epsilon,
    name,
):
    """A pre-norm encoder block with gated positional self-attention."""
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm1")(x)
    y = GatedPositionalSelfAttention(
        num_heads,
        grid_size,
        locality_strength,
        qkv_bias=qkv_bias,
        attention_dropout=attention_dropout,
        dropout=dropout,
        name=f"{name}_attention",
    )(y)
    x = add_branch(x, y, drop_path, f"{name}_attention")
    y = keras.layers.LayerNormalization(epsilon=epsilon, name=f"{name}_norm2")(x)
    y = mlp(y, mlp_width, dropout=dropout, name=f"{name}_mlp")
    return add_branch(x, y, drop_path, f"{name}_mlp")


def ConViT(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "convit",
    *,
    classifier: str = "dense",
    embedding_dim: int | None = None,
    patch_size: int = 16,
    dim: int = 432,
    depths: tuple[int, int] = (10, 2),
    num_heads: int = 9,
    locality_strength: float = 1.0,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = False,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.1,
    epsilon: float = 1e-6,
) -> keras.Model:
    """Build a ConViT; the defaults are ConViT-S.

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
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ImageNet's statistics. ``False``: already normalised.
        name: Of the model.
        classifier: ``"dense"`` or ``"cosine"``.
        embedding_dim: Optional width of a projected, batch-normalised embedding.
        patch_size: Side of a patch in pixels.
        dim: Width of a token.
        depths: Number of blocks with gated positional attention, which see patches alone, and of
            plain blocks after them, which see the class token, too; of these at least one.
        num_heads: Heads of each block; a square number makes the first convolution whole.
        locality_strength: How narrowly the gated heads look at first.
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
    if len(depths) != 2 or depths[0] < 0 or depths[1] < 1:
        raise ValueError(
            "depths must be two numbers, of gated blocks (0 or more) and of plain ones (1 or more: "
            f"only these see the class token), got {tuple(depths)}."
        )
    inputs, x = image_input(
        input_tensor,
        input_shape,
        (224, 224, 3),
        include_preprocessing=include_preprocessing,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
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
    grid_size = tuple(x.shape[1:3])
    x = keras.layers.Reshape((-1, dim), name="tokens")(x)
    x = LearnedPositionEmbedding(name="position_embedding")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="position_dropout")(x)
    gated, _ = depths
    arguments = {
        "num_heads": num_heads,
        "mlp_width": round(dim * mlp_ratio),
        "qkv_bias": qkv_bias,
        "dropout": dropout,
        "attention_dropout": attention_dropout,
        "epsilon": epsilon,
    }
    rates = linear_drop_path(drop_path, sum(depths))
    for i, rate in enumerate(rates[:gated]):
        x = gated_block(
            x,
            grid_size=grid_size,
            locality_strength=locality_strength,
            drop_path=rate,
            name=f"block{i}",
            **arguments,
        )
    x = ClassToken(name="class_token")(x)
    for i, rate in enumerate(rates[gated:], start=gated):
        x = transformer_block(x, drop_path=rate, name=f"block{i}", **arguments)
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


for _name, _variant in VARIANTS.items():
    _shape = (_variant.image_size, _variant.image_size, 3)
    register_model(
        ConViT,
        ModelInfo(
            name=_name,
            family="convit",
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
        dim=_variant.dim,
        num_heads=_variant.num_heads,
    )
