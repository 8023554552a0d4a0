"""FaceRec: a vision transformer whose attention a convolutional branch helps to place.

Paper: "FaceRec" (the text names neither venue nor year). Patches go two ways. A linear projection
makes tokens for a transformer; three convolution blocks, shared by all patches, make a second
embedding of each patch whose query-key products C are added to the logits of *every* attention
layer: ``softmax(QKᵀ/√d + C) V``. Sequence pooling makes the embedding, a cosine classifier with an
ArcFace loss the classes.

The paper leaves much open and no code was published. Our reading, each a keyword:

- C is divided by √(head width) and has no softmax of its own; it is computed once and added in
  every layer, as key-point relative encodings are (the patches do not change from layer to layer).
- All three convolution blocks have the same width ``conv_dim``; the last map is averaged over
  space ("N × d_c" in the text).
- Sets in braces in its Figure 3 are (attempt 1, attempt 2).
- Pre-norm blocks, biases everywhere, exact GELU: the vision transformer's defaults.
- Inputs are scaled to [−1, 1]; the paper does not say.

The same idea at a size for phones is in ``facerec_small``.
"""

from collections.abc import Sequence

import keras
from keras import ops

from keras_hybrid.applications.base import (
    build_model,
    check_counts,
    check_patches,
    image_input,
    transformer_block,
)
from keras_hybrid.applications.convolution import he_normal
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import RandomNormal
from keras_hybrid.layers.channels_last import Conv2D, channels_last
from keras_hybrid.layers.convolutional_attention import ConvolutionalAttention
from keras_hybrid.layers.pooling import SequencePooling
from keras_hybrid.layers.position import SinusoidalPositionEmbedding
from keras_hybrid.layers.tokens import ImageToPatches

__all__ = ["FaceRec", "PatchConvolutions"]

PAPER = "FaceRec (convolutional attention weights for vision transformers, ArcFace)"
EPSILON = 1e-5


@keras.saving.register_keras_serializable(package="keras_hybrid")
class PatchConvolutions(keras.layers.Layer):
    """A small CNN that sees each patch alone, with the same weights for all patches.

    Blocks of [convolution ``same``, ReLU, max pooling 2], then global average pooling (FaceRec,
    section 3, "ConvEmbedding").

    Args:
        patch_size: Side of a patch in pixels, at least 2^len(channels).
        channels: Widths of the convolution blocks.
        kernel_size: Of every convolution. An even kernel pads more at the bottom and right.

    Call arguments:
        inputs: Flattened patches, shape (batch, patches, patch_size² · image channels).

    Returns:
        Tensor of shape (batch, patches, channels[-1]).

    Raises:
        ValueError: If the patch is too small to be halved once for every block.
    """

    def __init__(
        self,
        patch_size: int,
        channels: Sequence[int] = (256, 256, 256),
        kernel_size: int = 2,
        **kwargs,
    ):
        super().__init__(**kwargs)
        channels = tuple(channels)
        if not channels or patch_size < 2 ** len(channels):
            raise ValueError(
                f"patch_size={patch_size} must be at least 2 to the number of convolution blocks, "
                f"and there must be one; got channels={channels}."
            )
        self.patch_size = patch_size
        self.channels = channels
        self.kernel_size = kernel_size

    def build(self, input_shape):
        shape = (None, self.patch_size, self.patch_size, input_shape[-1] // self.patch_size**2)
        self.image_channels = shape[-1]
        self.convolutions = []
        for i, width in enumerate(self.channels):
            convolution = Conv2D(
                width,
                self.kernel_size,
                padding="same",
                data_format="channels_last",
                activation="relu",
                kernel_initializer=he_normal("fan_in"),
                dtype=self.dtype_policy,
                name=f"conv{i}",
            )
            convolution.build(shape)
            shape = (None, shape[1] // 2, shape[2] // 2, width)
            self.convolutions.append(convolution)

    def call(self, inputs):
        x = ops.reshape(inputs, (-1, self.patch_size, self.patch_size, self.image_channels))
        for convolution in self.convolutions:
            x = channels_last(ops.max_pool, convolution(x), 2, strides=2)
        return ops.reshape(ops.mean(x, axis=(1, 2)), (-1, inputs.shape[1], self.channels[-1]))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:2], self.channels[-1])

    def get_config(self):
        return {
            **super().get_config(),
            "patch_size": self.patch_size,
            "channels": self.channels,
            "kernel_size": self.kernel_size,
        }


def FaceRec(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = 306,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "facerec",
    *,
    classifier: str = "cosine",
    centers_per_class: int = 1,
    embedding_dim: int | None = None,
    patch_size: int = 32,
    dim: int = 1024,
    depth: int = 8,
    num_heads: int = 16,
    mlp_ratio: float = 3.0,
    conv_dim: int = 256,
    conv_channels: Sequence[int] | None = None,
    conv_kernel_size: int = 2,
    convolutional_attention: bool = True,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> keras.Model:
    """Build FaceRec. The defaults are the paper's first attempt: 88,107,265 parameters.

    Its second attempt (113,702,913 parameters) is ``depth=10, conv_dim=512, conv_kernel_size=3``,
    registered as ``facerec_attempt2``.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels), multiples of ``patch_size``; default
            (256, 256, 3).
        pooling: Without top: ``None`` for tokens (batch, patches, dim), ``"avg"``, ``"max"``, or
            ``"native"`` for sequence pooling.
        classes: Number of identities; the paper has 306.
        classifier_activation: Only with ``classifier="dense"``.
        include_preprocessing: Whether inputs are float images in [0, 255], mapped to [−1, 1]
            inside. ``False``: already normalised.
        name: Of the model.
        classifier: ``"cosine"`` (train it with a margin loss) or ``"dense"``.
        centers_per_class: Sub-centres of the cosine classifier.
        embedding_dim: Optional width of a projected, batch-normalised embedding; the paper has
            none.
        patch_size: Side of a patch in pixels.
        dim: Width of a token.
        depth: Number of transformer blocks (the paper's L).
        num_heads: Heads of the transformer and of the convolutional attention.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        conv_dim: Width of the convolution blocks (the paper's d_c).
        conv_channels: Widths of the convolution blocks one by one; overrides ``conv_dim``.
        conv_kernel_size: Of the convolutions.
        convolutional_attention: ``False`` leaves the branch out: the transformer it extends.
        dropout: Rate after both projections of a block.
        attention_dropout: Rate on the attention maps.

    Returns:
        A Functional model from (batch, height, width, channels) to cosθ (batch, classes), float32
        in [−1, 1].

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    check_counts(depth=depth)
    inputs, x = image_input(
        input_tensor, input_shape, (256, 256, 3), include_preprocessing=include_preprocessing
    )
    check_patches(x, patch_size)
    grid_size = (x.shape[1] // patch_size, x.shape[2] // patch_size)
    patches = ImageToPatches(patch_size, name="patches")(x)
    logits = None
    if convolutional_attention:
        features = PatchConvolutions(
            patch_size,
            channels=conv_channels or (conv_dim,) * 3,
            kernel_size=conv_kernel_size,
            name="patch_convolutions",
        )(patches)
        logits = ConvolutionalAttention(num_heads, name="convolutional_attention")(features)
    x = keras.layers.Dense(
        dim,
        kernel_initializer=RandomNormal(stddev=0.02),
        name="patch_embedding",
    )(patches)
    x = SinusoidalPositionEmbedding(name="position_embedding")(x)
    for i in range(depth):
        x = transformer_block(
            x,
            num_heads=num_heads,
            mlp_width=round(dim * mlp_ratio),
            attention_bias=logits,
            dropout=dropout,
            attention_dropout=attention_dropout,
            epsilon=EPSILON,
            name=f"block{i}",
        )
    x = keras.layers.LayerNormalization(epsilon=EPSILON, name="norm")(x)
    x = endpoint(x, patch_size, grid_size)
    return build_model(
        inputs,
        x,
        lambda: SequencePooling(name="sequence_pooling")(x),
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


register_model(
    FaceRec,
    ModelInfo(
        name="facerec",
        family="facerec",
        paper=PAPER,
        input_shape=(256, 256, 3),
        classes=306,
        classifier="cosine",
        parameters=88_107_265,
        macs=11_216_996_352,
        reconstruction=True,
    ),
)
register_model(
    FaceRec,
    ModelInfo(
        name="facerec_attempt2",
        family="facerec",
        paper=PAPER,
        input_shape=(256, 256, 3),
        classes=306,
        classifier="cosine",
        parameters=113_702_913,
        macs=56_256_481_280,
        reconstruction=True,
    ),
    depth=10,
    conv_dim=512,
    conv_kernel_size=3,
)
