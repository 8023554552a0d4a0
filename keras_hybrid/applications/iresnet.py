"""IResNet: the residual network of face recognition, ArcFace's own backbone.

Paper: Deng et al. 2019, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition"
(arXiv:1801.07698), section 3.1; the block is the "improved residual unit" of its authors' code,
insightface's arcface_torch, to which outputs are tested: BN, 3×3, BN, PReLU, 3×3 with the stride,
BN. The stem keeps the resolution, so every stage halves it, and the whole last map is projected.

As there, the normalisation of the embedding has a scale that is not trained (it stays at 1 unless a
checkpoint brings another), and ε is 1e-5; older releases had 2e-5. The code's dropout before the
projection is off by default, as in its recipes.
"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import CASIA_CLASSES, build_model, check_counts, image_input
from keras_hybrid.applications.convolution import EPSILON, MOMENTUM, batch_norm, conv_norm
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.registry import ModelInfo, register_model
from keras_hybrid.initializers import RandomNormal, RandomUniform
from keras_hybrid.layers.normalization import BatchNormalization

__all__ = ["FixedScaleBatchNormalization", "IResNet"]

PAPER = "Deng et al. 2019, arXiv:1801.07698"


@dataclasses.dataclass(frozen=True)
class IResNetVariant:
    """Blocks of each stage, and what the model then counts."""

    depths: tuple[int, ...]
    parameters: int
    macs: int


VARIANTS = {
    "iresnet18": IResNetVariant((2, 2, 2, 2), 29_453_184, 2_615_367_680),
    "iresnet50": IResNetVariant((3, 4, 14, 3), 49_041_856, 6_314_743_808),
    "iresnet100": IResNetVariant((3, 13, 30, 3), 70_638_656, 12_095_019_008),
}


@keras.saving.register_keras_serializable(package="keras_hybrid")
class FixedScaleBatchNormalization(BatchNormalization):
    """Batch normalisation whose scale γ is loaded with the weights and never trained.

    ``γ (x − mean) / √(variance + ε) + β``: a free γ could grow single coordinates of an embedding
    that a cosine classifier normalises anyway (insightface's ``features``).

    Call arguments:
        inputs: Shape (batch, …, channels).

    Returns:
        Tensor of the same shape.
    """

    def add_weight(self, *args, **kwargs):
        if kwargs.get("name") == "gamma":
            kwargs["trainable"] = False
        return super().add_weight(*args, **kwargs)


def _initializer() -> keras.initializers.Initializer:
    return RandomNormal(stddev=0.1)


def improved_block(x, filters: int, *, strides: int, name: str):
    """BN, 3×3, BN, PReLU, 3×3 with the stride, BN; added to the input, projected if it must be."""
    common = {"initializer": _initializer()}
    y = batch_norm(x, f"{name}_norm")
    y = conv_norm(y, filters, 3, activation="prelu", name=f"{name}_conv1", **common)
    y = conv_norm(y, filters, 3, strides=strides, name=f"{name}_conv2", **common)
    if strides > 1 or x.shape[-1] != filters:
        x = conv_norm(x, filters, 1, strides=strides, name=f"{name}_shortcut", **common)
    return keras.layers.Add(name=f"{name}_add")([x, y])


def project(x, embedding_dim: int | None, dropout: float):
    """Flatten the map, project it, and normalise the batch with a fixed scale."""
    if dropout:
        x = keras.layers.Dropout(dropout, name="head_dropout")(x)
    x = keras.layers.Flatten(name="head_flatten")(x)
    if embedding_dim is None:
        return x
    # PyTorch's default for a linear layer.
    limit = x.shape[-1] ** -0.5
    x = keras.layers.Dense(
        embedding_dim,
        kernel_initializer=RandomUniform(-limit, limit),
        bias_initializer=RandomUniform(-limit, limit),
        name="embedding_projection",
    )(x)
    return FixedScaleBatchNormalization(epsilon=EPSILON, momentum=MOMENTUM, name="embedding_norm")(
        x
    )


def IResNet(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = CASIA_CLASSES,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "iresnet",
    *,
    classifier: str = "cosine",
    centers_per_class: int = 1,
    embedding_dim: int | None = 512,
    stem_channels: int = 64,
    channels: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (3, 4, 14, 3),
    dropout: float = 0.0,
) -> keras.Model:
    """Build an IResNet. The defaults are IResNet-50.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, or the path of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels); default (112, 112, 3).
        pooling: Without top: ``None`` for the last map (batch, height, width, channels[-1]),
            ``"avg"`` or ``"max"`` over it, ``"native"`` for the embedding.
        classes: Number of identities; the default is cleaned CASIA-WebFace's.
        classifier_activation: Only with ``classifier="dense"``.
        include_preprocessing: Whether inputs are float images in [0, 255], mapped to [−1, 1]
            inside. ``False``: already normalised.
        name: Of the model.
        classifier: ``"cosine"`` (train it with a margin loss) or ``"dense"``.
        centers_per_class: Sub-centres of the cosine classifier.
        embedding_dim: Width of the embedding; ``None`` for the flattened map.
        stem_channels: Of the first convolution.
        channels: Of each stage.
        depths: Blocks of each stage; the first of them halves the resolution.
        dropout: Rate on the last map, before it is projected.

    Returns:
        A Functional model from (batch, height, width, channels) to cosθ (batch, classes), float32
        in [−1, 1].

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    if len(channels) != len(depths):
        raise ValueError(f"channels={channels} and depths={depths} must be of the same length.")
    check_counts(depths=depths)
    inputs, x = image_input(
        input_tensor, input_shape, (112, 112, 3), include_preprocessing=include_preprocessing
    )
    x = conv_norm(x, stem_channels, 3, activation="prelu", initializer=_initializer(), name="stem")
    for stage, (filters, depth) in enumerate(zip(channels, depths, strict=True)):
        x = endpoint(x, 2**stage)
        for i in range(depth):
            x = improved_block(
                x, filters, strides=2 if i == 0 else 1, name=f"stage{stage}_block{i}"
            )
    x = endpoint(batch_norm(x, "norm"), 2 ** len(depths))
    return build_model(
        inputs,
        x,
        lambda: project(x, embedding_dim, dropout),
        include_top=include_top,
        pooling=pooling,
        classes=classes,
        classifier=classifier,
        classifier_activation=classifier_activation,
        weights=weights,
        name=name,
        centers_per_class=centers_per_class,
    )


for _name, _variant in VARIANTS.items():
    register_model(
        IResNet,
        ModelInfo(
            name=_name,
            family="iresnet",
            paper=PAPER,
            input_shape=(112, 112, 3),
            classes=CASIA_CLASSES,
            classifier="cosine",
            parameters=_variant.parameters,
            macs=_variant.macs,
        ),
        depths=_variant.depths,
    )
