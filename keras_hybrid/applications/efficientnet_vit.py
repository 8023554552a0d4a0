"""EfficientNet and Face Transformer in a row: an early map of the one is the other's image.

Source: the report "Towards a robust and EfficientNet Architecture for Face Recognition" and its
code (https://github.com/Debargha-Mitra-Roy/Face-Transformer, ``EfficientNet_Trim_ViT``). Three
blocks of EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946) turn 112 × 112 pixels into a map of
28 × 28 with 24 channels; patches of 4 × 4 are the 49 tokens of a Face Transformer (Zhong and Deng
2021, arXiv:2103.14803) of full depth. Where text and code differ, the code trained the model:

- The stem's normalisation has no activation behind it: the code cuts the trunk out of
  EfficientNet-PyTorch, whose swish lives in the part left behind. ``stem_activation="swish"`` is
  B0 as the text describes it, with the same counts.
- The trunk starts from random numbers, not from ImageNet, and drops no paths.
- Inputs are raw, in [0, 255].
- ``weights="imagenet"`` is B0 as the text describes it, pretrained: swish in the stem, ImageNet's
  normalisation (``keras_trunk=True`` builds the same without the weights).
- The published model holds its classifier twice and a convolution that nothing feeds; we do not.

``efficientvit_face_small`` is ours, a size for phones: the stages of EfficientNet-Lite0 (ReLU6, no
squeeze-and-excitation) up to a map of 7 × 7, whose places are the tokens of four blocks of width
256, and a projected, batch-normalised embedding. Its trunk takes the published ImageNet weights of
EfficientNet-Lite0 (``keras_hybrid/convert/efficientnet.py`` says how), which were trained with
``pixel_mean=127.0, pixel_std=128.0``, at most a 128th from the 127.5 that are the default here.
"""

import dataclasses
from collections.abc import Sequence

import keras

from keras_hybrid.applications.base import (
    CASIA_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_model,
    check_counts,
    image_input,
)
from keras_hybrid.applications.efficientnet import (
    B0_STAGES,
    check_stages,
    efficientnet_trunk,
    imagenet_weights,
)
from keras_hybrid.applications.face_transformer import face_encoder
from keras_hybrid.applications.features import endpoint
from keras_hybrid.applications.imagenet import keras_form
from keras_hybrid.applications.registry import ModelInfo, register_model

__all__ = ["EfficientNetViT"]

PAPER = "Tan and Le 2019, arXiv:1905.11946; Zhong and Deng 2021, arXiv:2103.14803"


@dataclasses.dataclass(frozen=True)
class EfficientNetViTVariant:
    """What makes a registered model, and its numbers."""

    arguments: dict
    ours: bool
    parameters: int
    macs: int


VARIANTS = {
    "efficientvit_face": EfficientNetViTVariant({}, False, 68_674_386, 3_230_931_648),
    "efficientvit_face_small": EfficientNetViTVariant(
        {
            "stages": B0_STAGES[:5],
            "se_ratio": 0.0,
            "activation": "relu6",
            "stem_activation": "relu6",
            "patch_size": 1,
            "dim": 256,
            "depth": 4,
            "num_heads": 4,
            "embedding_dim": 512,
            "pixel_mean": 127.5,
            "pixel_std": 127.5,
        },
        True,
        9_461_376,
        230_172_496,
    ),
}


def EfficientNetViT(
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: Sequence[int] | None = None,
    pooling: str | None = None,
    classes: int = CASIA_CLASSES,
    classifier_activation=None,
    include_preprocessing: bool = True,
    name: str = "efficientnet_vit",
    *,
    classifier: str = "cosine",
    centers_per_class: int = 1,
    embedding_dim: int | None = None,
    stem_channels: int = 32,
    stem_activation: str | None = None,
    stages: Sequence[Sequence] = B0_STAGES[:2],
    se_ratio: float = 0.25,
    activation: str = "swish",
    momentum: float = 0.99,
    drop_path: float = 0.0,
    patch_size: int = 4,
    dim: int = 512,
    depth: int = 20,
    num_heads: int = 8,
    head_dim: int = 64,
    mlp_ratio: float = 4.0,
    embedding_dropout: float = 0.1,
    dropout: float = 0.1,
    pixel_mean: float | Sequence[float] | None = None,
    pixel_std: float | Sequence[float] | None = None,
    keras_trunk: bool | None = None,
) -> keras.Model:
    """Build the hybrid of EfficientNet and Face Transformer. The defaults are the report's.

    Args:
        include_top: Whether to end in the ``predictions`` layer.
        weights: ``None``, ``"imagenet"`` for Keras's of EfficientNet-B0 in the trunk, or the path
            of a .weights.h5 or .keras file.
        input_tensor: Optional Keras tensor to build on.
        input_shape: (height, width, channels), multiples of the trunk's stride times
            ``patch_size``; default (112, 112, 3).
        pooling: Without top: ``None`` for all tokens (batch, 1 + patches, dim), ``"avg"`` or
            ``"max"`` over them, ``"native"`` for the class token.
        classes: Number of identities; the default is cleaned CASIA-WebFace's.
        classifier_activation: Only with ``classifier="dense"``.
        include_preprocessing: Whether inputs are float images in [0, 255], normalised inside with
            ``pixel_mean`` and ``pixel_std``; the report's are raw, so the layer multiplies by one.
            ``False``: already normalised.
        name: Of the model.
        classifier: ``"cosine"`` (train it with a margin loss) or ``"dense"``.
        centers_per_class: Sub-centres of the cosine classifier.
        embedding_dim: Optional width of a projected, batch-normalised embedding; the report has
            none.
        stem_channels: Of the first convolution, which halves the image.
        stem_activation: After the stem's normalisation: ``None`` as in the report's code,
            ``"swish"`` as in its text and, whatever this says, with ``keras_trunk``.
        stages: Of the trunk, as ``EfficientNet`` has them.
        se_ratio: Hidden width of squeeze-and-excitation over the channels of a block's input; 0:
            without.
        activation: Of the trunk's blocks, a name Keras knows.
        momentum: Of the trunk's batch normalisations.
        drop_path: Rate on the trunk's residual branches, rising linearly from 0 towards it.
        patch_size: Side of a patch in places of the trunk's map.
        dim: Width of a token.
        depth: Number of transformer blocks.
        num_heads: Heads of each block.
        head_dim: Width of a head.
        mlp_ratio: Hidden width of the MLP over ``dim``.
        embedding_dropout: Rate on the embedded tokens.
        dropout: Rate after the attention and after both layers of the MLP.
        pixel_mean: One number or one for each channel, in units of [0, 255]; ``None``: 0, or
            ImageNet's with ``keras_trunk``.
        pixel_std: Likewise; ``None``: 1, or ImageNet's.
        keras_trunk: Whether the trunk is that of ``keras.applications.EfficientNetB0``; ``None``:
            if its weights are asked for. Say so when you load such weights from a file.

    Returns:
        A Functional model from (batch, height, width, channels) to cosθ (batch, classes), float32
        in [−1, 1].

    Raises:
        ValueError: If an argument has no meaning; the message names it.
    """
    if keras_form(weights, keras_trunk):
        default_mean, default_std, stem_activation = IMAGENET_MEAN, IMAGENET_STD, activation
    else:
        default_mean, default_std = 0.0, 1.0
    pixel_mean = default_mean if pixel_mean is None else pixel_mean
    pixel_std = default_std if pixel_std is None else pixel_std
    check_counts(depth=depth, head_dim=head_dim)
    inputs, image = image_input(
        input_tensor,
        input_shape,
        (112, 112, 3),
        include_preprocessing=include_preprocessing,
        mean=pixel_mean,
        std=pixel_std,
    )
    check_stages(stages)
    if patch_size < 1:
        raise ValueError(f"patch_size must be a positive integer, got {patch_size}.")
    _check_size(image, stages, patch_size)
    x, stride = efficientnet_trunk(
        image,
        stem_channels=stem_channels,
        stages=stages,
        se_ratio=se_ratio,
        activation=activation,
        stem_activation=stem_activation,
        momentum=momentum,
        drop_path=drop_path,
    )
    if patch_size > 1:
        x = endpoint(x, stride)
    x = face_encoder(
        x,
        patch_size=patch_size,
        patch_stride=patch_size,
        stride=stride * patch_size,
        dim=dim,
        depth=depth,
        num_heads=num_heads,
        head_dim=head_dim,
        mlp_width=round(dim * mlp_ratio),
        embedding_dropout=embedding_dropout,
        dropout=dropout,
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
        centers_per_class=centers_per_class,
        imagenet=imagenet_weights(
            image,
            stem_channels=stem_channels,
            stages=stages,
            se_ratio=se_ratio,
            activation=activation,
            normalization=(pixel_mean, pixel_std) if include_preprocessing else None,
        ),
    )


def _check_size(image, stages: Sequence[Sequence], patch_size: int) -> None:
    multiple = 2 * patch_size
    for stage in stages:
        multiple *= stage[5]
    height, width = image.shape[1:3]
    if height % multiple or width % multiple:
        raise ValueError(f"input_shape must be a multiple of {multiple}, got {height}x{width}.")


for _name, _variant in VARIANTS.items():
    register_model(
        EfficientNetViT,
        ModelInfo(
            name=_name,
            family="efficientnet_vit",
            paper=PAPER,
            input_shape=(112, 112, 3),
            classes=CASIA_CLASSES,
            classifier="cosine",
            parameters=_variant.parameters,
            macs=_variant.macs,
            ours=_variant.ours,
        ),
        **_variant.arguments,
    )
