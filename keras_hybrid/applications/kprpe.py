"""KP-RPE: a face ViT whose attention knows where the eyes, the nose and the mouth are.

Paper: Kim et al. 2024, "KeyPoint Relative Position Encoding for Face Recognition"
(arXiv:2403.14852). The host is insightface's face ViT: no class token, ReLU6 in the MLP, no bias on
queries, keys and values, and all tokens flattened into the embedding. KP-RPE adds logits to every
attention map: the ten differences between a query's patch centre and five landmarks go through one
linear layer, which gives 49 numbers for each block and head, and the key's position relative to the
query says which of the 49 is added. We follow the authors' code, to which outputs are tested.

Where the landmarks come from is ours to choose, since the authors' frozen aligner is no part of the
model. ``landmarks`` is

- ``"learned"``, what is registered: a convolutional head within the model predicts them, so that
  the model takes an image like every other of the zoo, and a phone needs no second model. The
  authors' aligner receives no gradient; this head does, or it could learn nothing. It starts at the
  five points faces are aligned to. Its output is the layer ``landmarks``, (batch, 5, 2), which may
  be trained on annotated points first and frozen then. It adds 0.1 % to the model's cost.
- ``"given"``: a second input named ``landmarks``. This is the authors' model, and takes their
  checkpoints; ``data.Batches`` and ``evaluation`` hand it the landmarks of the data. Export, which
  is for models of one input, does not take it.
- a Keras tensor: the output of the reader's own aligner.
- ``None``: the plain ViT. With any landmarks the model starts as that one too, since the linear
  layer starts at zero.

Looking a number up is two products with 0-1 tables (columns, then rows), not a gather: for 14 × 14
patches and 8 heads 3.2 million multiply-accumulates in each block (0.4 % of the small model, 1.2 %
of the base model with its 16 heads) and two tables of 1,372 entries. One product with a table of
all pairs would take 15 million and 1.9 million entries. As the authors' gather counts for nothing,
the registered figures leave the lookup out.
"""

import dataclasses
import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_hybrid.applications.base import (
    CASIA_CLASSES,
    add_branch,
    build_model,
    check_counts,
    check_patches,
    image_input,
    linear_drop_path,
    mlp,
)
from keras_hybrid.applications.convolution import he_normal
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import RandomNormal, RandomUniform
from keras_hybrid.layers.attention import MultiHeadSelfAttention
from keras_hybrid.layers.channels_last import Conv2D
from keras_hybrid.layers.normalization import BatchNormalization
from keras_hybrid.layers.position import LearnedPositionEmbedding

__all__ = ["KPRPE", "KeypointOffsets", "KeypointRelativeBias"]

PAPER = "Kim et al. 2024, arXiv:2403.14852"
EPSILON = 1e-5
# Eyes, nose, mouth corners as (x, y) in pixels of an aligned face of 112 × 112 (ArcFace's).
ALIGNED_LANDMARKS = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)


@dataclasses.dataclass(frozen=True)
class KPRPEVariant:
    """The numbers that make a size."""

    depth: int
    num_heads: int
    mlp_ratio: float
    parameters: int
    macs: int


# The paper's counts, and the classifier of 5,412,864, 2,048 moving statistics and the landmark
# head of 92,410 parameters and 10,417,792 multiply-accumulates.
VARIANTS = {
    "kprpe_vit_small": KPRPEVariant(12, 8, 5.0, 101_511_450, 9_199_893_888),
    "kprpe_vit_base": KPRPEVariant(24, 16, 3.0, 120_584_058, 13_398_985_344),
}


@keras.saving.register_keras_serializable(package="keras_hybrid")
class KeypointOffsets(keras.layers.Layer):
    """Differences between the centre of each patch and each landmark.

    Row n is ``(c_n − p_0, …, c_n − p_4)``, each difference (x, y); Kim et al. 2024.

    Args:
        grid_size: (height, width) of the grid whose row-major cells are the patches.

    Call arguments:
        inputs: Landmarks, shape (batch, points, 2), each (x, y) in [0, 1] from the image's upper
            left to its lower right corner.

    Returns:
        Tensor of shape (batch, height · width, 2 · points).
    """

    def __init__(self, grid_size: tuple[int, int], **kwargs):
        super().__init__(**kwargs)
        self.grid_size = tuple(grid_size)

    def build(self, input_shape):
        height, width = self.grid_size
        row, column = np.divmod(np.arange(height * width), width)
        centers = np.stack([(column + 0.5) / width, (row + 0.5) / height], axis=-1)
        # (1, patches, 2 · points)
        self._centers = np.tile(centers, input_shape[1])[np.newaxis].astype("float32")

    def call(self, inputs):
        points = ops.reshape(inputs, (-1, 1, 2 * inputs.shape[1]))
        return ops.convert_to_tensor(self._centers, dtype=points.dtype) - points

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.grid_size[0] * self.grid_size[1], 2 * input_shape[1])

    def get_config(self):
        return {**super().get_config(), "grid_size": self.grid_size}


def axis_bucket_count(ratio: float) -> int:
    """Return how many buckets an axis has."""
    return 2 * int(2 * ratio) + 1


def axis_buckets(size: int, ratio: float) -> np.ndarray:
    """Return, for each pair of positions on an axis, the bucket of query − key, counted from 0.

    iRPE's piecewise index (Wu et al. 2021, arXiv:2107.14222): near distances are told apart one by
    one, far ones by their logarithm, and the sign always.
    """
    nearest, last, farthest = ratio, 2 * ratio, 8 * ratio

    def bucket(distance: int) -> int:
        if abs(distance) <= nearest:
            return distance
        share = math.log(abs(distance) / nearest) / math.log(farthest / nearest)
        far = int(min(round(nearest + share * (last - nearest)), last))
        return far if distance > 0 else -far

    return np.array([[bucket(i - j) + int(last) for j in range(size)] for i in range(size)])


@keras.saving.register_keras_serializable(package="keras_hybrid")
class KeypointRelativeBias(keras.layers.Layer):
    """Attention logits that each query looks up by the bucket of the key's relative position.

    ``B[h, i, j] = f_i[h, bucket(i, j)]`` (Kim et al. 2024), where the bucket is the pair of the
    row's and the column's (iRPE's product method), so that two products with 0-1 tables do it:
    ``Σ_a R[i_row, j_row, a] Σ_b f_i[h, (a, b)] C[i_column, b, j_column]``.

    Args:
        grid_size: (height, width) of the grid whose row-major cells are the tokens.
        num_heads: Heads that have numbers of their own.
        block: Which block's share of the channels is looked up.
        ratio: Distance, in cells, up to which all are told apart; twice that is the last bucket.

    Call arguments:
        inputs: Shape (batch, height · width, blocks · num_heads · buckets), the buckets row by row.

    Returns:
        Logits of shape (batch, num_heads, tokens, tokens).

    Raises:
        ValueError: If ``ratio`` is not positive, or the input has another number of tokens or no
            such block.
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        num_heads: int,
        block: int = 0,
        ratio: float = 1.9,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if ratio <= 0:
            raise ValueError(f"ratio must be positive, got {ratio}.")
        self.grid_size = tuple(grid_size)
        self.num_heads = num_heads
        self.block = block
        self.ratio = ratio
        self._buckets = axis_bucket_count(ratio)

    def build(self, input_shape):
        (height, width), share = self.grid_size, self.num_heads * self._buckets**2
        _, tokens, channels = input_shape
        if tokens != height * width or channels % share or (self.block + 1) * share > channels:
            raise ValueError(
                f"Block {self.block} of grid_size={self.grid_size} and num_heads={self.num_heads} "
                f"needs {height * width} tokens of a multiple of {share} channels, got {tokens} of "
                f"{channels}."
            )
        one_hot = np.eye(self._buckets, dtype="float32")
        # (1, query row, key row, bucket) and (1, query column, bucket, key column)
        self._rows = one_hot[axis_buckets(height, self.ratio)][np.newaxis]
        columns = one_hot[axis_buckets(width, self.ratio)][np.newaxis]
        self._columns = np.ascontiguousarray(columns.transpose(0, 1, 3, 2))

    @property
    def hidden_products(self) -> int:
        """Multiply-accumulates of one image that only look numbers up."""
        width, tokens = self.grid_size[1], math.prod(self.grid_size)
        return self.num_heads * tokens * self._buckets * (self._buckets * width + tokens)

    def call(self, inputs):
        (height, width), tokens = self.grid_size, inputs.shape[1]
        buckets, share = self._buckets, self.num_heads * self._buckets**2
        rows, columns = (
            ops.convert_to_tensor(table, dtype=inputs.dtype)
            for table in (self._rows, self._columns)
        )
        x = inputs[:, :, self.block * share : (self.block + 1) * share]
        x = ops.reshape(x, (-1, tokens, self.num_heads, buckets**2))
        x = ops.transpose(x, (0, 2, 1, 3))
        # (batch · heads · row, column, row bucket, column bucket)
        x = ops.reshape(x, (-1, width, buckets, buckets))
        x = ops.transpose(ops.matmul(x, columns), (0, 2, 1, 3))
        # (batch · heads, row, row bucket, column · key column)
        x = ops.reshape(x, (-1, height, buckets, width * width))
        x = ops.matmul(rows, x)
        # (batch · heads · row, key row, column, key column)
        x = ops.reshape(x, (-1, height, width, width))
        x = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(x, (-1, self.num_heads, tokens, tokens))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_heads, input_shape[1], input_shape[1])

    def get_config(self):
        return {
            **super().get_config(),
            "grid_size": self.grid_size,
            "num_heads": self.num_heads,
            "block": self.block,
            "ratio": self.ratio,
        }


def _batch_norm(epsilon: float, name: str) -> keras.layers.Layer:
    return BatchNormalization(epsilon=epsilon, momentum=0.9, name=name)


def _landmark_head(x, channels: Sequence[int]):
    """Predict the landmarks, (batch, 5, 2) in (0, 1), from a normalised image."""
    for i, filters in enumerate(channels):
        x = Conv2D(
            filters,
            3,
            strides=2,
            padding="same",
            use_bias=False,
            kernel_initializer=he_normal("fan_in"),
            name=f"landmark{i}_conv",
        )(x)
        x = _batch_norm(EPSILON, f"landmark{i}_norm")(x)
        x = keras.layers.Activation("relu", name=f"landmark{i}_relu")(x)
    x = keras.layers.Flatten(name="landmark_flatten")(x)
    aligned = np.array(ALIGNED_LANDMARKS).reshape(-1) / 112
    x = keras.layers.Dense(
        aligned.size,
        activation="sigmoid",
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(np.log(aligned / (1 - aligned)).tolist()),
        dtype="float32",  # half precision would place a point no better than to half a pixel
        name="landmark_points",
    )(x)
    return keras.layers.Reshape((-1, 2), dtype="float32", name="landmarks")(x)


def _landmarks(landmarks, image, channels: Sequence[int]):
    """Return the tensor of landmarks that the builder's argument asks for, or None."""
    if landmarks is None:
        return None
    if isinstance(landmarks, str) and landmarks == "learned":
        return _landmark_head(image, channels)
    shape = (len(ALIGNED_LANDMARKS), 2)
    if isinstance(landmarks, str) and landmarks == "given":
        return keras.Input(shape, name="landmarks")
    if not keras.utils.is_keras_tensor(landmarks) or tuple(landmarks.shape[1:]) != shape:
        raise ValueError(
            "landmarks must be 'learned', 'given', None or a Keras tensor of shape (batch, 5, 2), "
            f"got {landmarks!r}."
        )
    return landmarks


def _block(x, bias, *, num_heads, mlp_width, dropout, attention_dropout, drop_path, name):
    """The host's encoder block: x + MHSA(LN x), then x + MLP(LN x) with a ReLU6."""
    y = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm1")(x)
    attention = MultiHeadSelfAttention(
        num_heads,
        qkv_bias=False,
        attention_dropout=attention_dropout,
        dropout=dropout,
        name=f"{name}_attention",
    )
    y = attention(y) if bias is None else attention(y, attention_bias=bias)
    x = add_branch(x, y, drop_path, f"{name}_attention")
    y = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm2")(x)
    y = mlp(y, mlp_width, dropout=dropout, activation="relu6", name=f"{name}_mlp")
    return add_branch(x, y, drop_path, f"{name}_mlp")


def KPRPE(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = CASIA_CLASSES,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "kprpe",
    *,
    classifier: str = "cosine",
    centers_per_class: int = 1,
    embedding_dim: int = 512,
    landmarks="learned",
    landmark_channels: Sequence[int] = (16, 32, 64, 64),
    share_heads: bool = False,
    share_blocks: bool = False,
    bucket_ratio: float = 1.9,
    patch_size: int = 8,
    dim: int = 512,
    depth: int = 24,
    num_heads: int = 16,
    mlp_ratio: float = 3.0,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    drop_path: float = 0.1,
) -> keras.Model:
    """Build a face ViT with KP-RPE. The defaults are the paper's ViT base.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels), multiples of ``patch_size``; default
            (112, 112, 3).
        pooling: Without top: ``None`` for all tokens (batch, patches, dim), ``"avg"`` or ``"max"``
            over them, ``"native"`` for the embedding of all tokens flattened.
        classes: Number of identities; the default is cleaned CASIA-WebFace's.
        classifier_activation: Only with ``classifier="dense"``.
        include_preprocessing: Whether inputs are float images in [0, 255], which the model maps
            to [−1, 1]. ``False``: already normalised.
        name: Of the model.
        classifier: ``"cosine"`` (train it with a margin loss) or ``"dense"``.
        centers_per_class: Sub-centres of the cosine classifier.
        embedding_dim: Width of the embedding.
        landmarks: ``"learned"``: predicted from the image. ``"given"``: the second input
            ``landmarks`` of shape (batch, 5, 2). A Keras tensor of that shape. Or ``None``: the
            plain ViT. Five points (x, y) in the order eyes, nose, mouth corners, image-left first,
            in [0, 1] from the image's upper left to its lower right corner:
            ``keras_hybrid.data.normalize_landmarks`` of pixels.
        landmark_channels: Channels of each halving convolution of the head that learns them.
        share_heads: Whether all heads of a block add the same logits.
        share_blocks: Whether all blocks add the same logits.
        bucket_ratio: Distance, in patches, up to which the keys' are told apart one by one.
        patch_size: Side of a patch in pixels.
        dim: Width of a token.
        depth: Number of blocks.
        num_heads: Heads of each block.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        dropout: Rate on the embedded tokens and after all projections of a block.
        attention_dropout: Rate on the attention maps.
        drop_path: Rate of the last block; earlier ones rise linearly from 0.

    Returns:
        A Functional model from (batch, height, width, channels), with ``landmarks="given"`` from
        [images, landmarks], to cosθ (batch, classes), float32 in [−1, 1].

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    if bucket_ratio <= 0:
        raise ValueError(f"bucket_ratio must be positive, got {bucket_ratio}.")
    check_counts(depth=depth)
    inputs, x = image_input(
        input_tensor, input_shape, (112, 112, 3), include_preprocessing=include_preprocessing
    )
    check_patches(x, patch_size)
    points = _landmarks(landmarks, x, landmark_channels)
    if points is not None:
        sources = (*keras.utils.get_source_inputs(inputs), *keras.utils.get_source_inputs(points))
        inputs = list({id(tensor): tensor for tensor in sources}.values())
    grid_size = (x.shape[1] // patch_size, x.shape[2] // patch_size)
    # PyTorch's default for convolutions.
    limit = (patch_size**2 * x.shape[-1]) ** -0.5
    x = Conv2D(
        dim,
        patch_size,
        strides=patch_size,
        padding="valid",
        kernel_initializer=RandomUniform(-limit, limit),
        bias_initializer=RandomUniform(-limit, limit),
        name="patch_embedding",
    )(x)
    x = keras.layers.Reshape((-1, dim), name="tokens")(x)
    x = LearnedPositionEmbedding(name="position_embedding")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="position_dropout")(x)
    biases = [None] * depth
    if points is not None:
        biases = _keypoint_biases(
            points,
            grid_size,
            depth,
            num_heads,
            share_heads=share_heads,
            share_blocks=share_blocks,
            ratio=bucket_ratio,
        )
    for i, rate in enumerate(linear_drop_path(drop_path, depth)):
        x = _block(
            x,
            biases[i],
            num_heads=num_heads,
            mlp_width=round(dim * mlp_ratio),
            dropout=dropout,
            attention_dropout=attention_dropout,
            drop_path=rate,
            name=f"block{i}",
        )
    x = keras.layers.LayerNormalization(epsilon=EPSILON, name="norm")(x)
    x = endpoint(x, patch_size, grid_size)

    def embedding():
        y = keras.layers.Flatten(name="flatten")(x)
        for part, width in (("feature", dim), ("embedding", embedding_dim)):
            y = keras.layers.Dense(
                width,
                use_bias=False,
                kernel_initializer=RandomNormal(stddev=0.02),
                name=f"{part}_projection",
            )(y)
            y = _batch_norm(2e-5, f"{part}_norm")(y)
        return y

    return build_model(
        inputs,
        x,
        embedding,
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier=classifier,
        classifier_activation=classifier_activation,
        weights=weights,
        name=name,
        centers_per_class=centers_per_class,
    )


def _keypoint_biases(
    points, grid_size, depth, num_heads, *, share_heads, share_blocks, ratio
) -> list:
    """Return the logits of each block."""
    heads, blocks = 1 if share_heads else num_heads, 1 if share_blocks else depth
    x = KeypointOffsets(grid_size, dtype="float32", name="keypoint_offsets")(points)
    x = keras.layers.Dense(
        blocks * heads * axis_bucket_count(ratio) ** 2,
        kernel_initializer="zeros",
        bias_initializer="zeros",
        name="keypoint_linear",
    )(x)
    biases = [
        KeypointRelativeBias(grid_size, heads, i, ratio, name=f"block{i}_keypoint_bias")(x)
        for i in range(blocks)
    ]
    return biases * depth if share_blocks else biases


for _name, _variant in VARIANTS.items():
    register_model(
        KPRPE,
        ModelInfo(
            name=_name,
            family="kprpe",
            paper=PAPER,
            input_shape=(112, 112, 3),
            classes=CASIA_CLASSES,
            classifier="cosine",
            parameters=_variant.parameters,
            macs=_variant.macs,
        ),
        depth=_variant.depth,
        num_heads=_variant.num_heads,
        mlp_ratio=_variant.mlp_ratio,
    )
