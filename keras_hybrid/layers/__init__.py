"""Building blocks that two or more families share, and the margin heads."""

from keras_hybrid.layers.attention import MultiHeadSelfAttention
from keras_hybrid.layers.channels_last import Conv2D, DepthwiseConv2D, MaxPooling2D, Rescaling
from keras_hybrid.layers.convolutional_attention import ConvolutionalAttention
from keras_hybrid.layers.convolutional_projection import (
    ConvolutionalProjection,
    ConvolutionalProjectionAttention,
)
from keras_hybrid.layers.fully_convolutional import FullyConvolutionalTransformer
from keras_hybrid.layers.margin import ArcFace, CosFace, CosineClassifier
from keras_hybrid.layers.normalization import BatchNormalization, UnitNormalization
from keras_hybrid.layers.partial_margin import PartialCosineClassifier
from keras_hybrid.layers.pooling import SequencePooling
from keras_hybrid.layers.position import (
    LearnedPositionEmbedding,
    RelativePositionBias,
    SinusoidalPositionEmbedding,
)
from keras_hybrid.layers.regularization import DropPath
from keras_hybrid.layers.tokens import ClassToken, ImageToPatches

__all__ = [
    "ArcFace",
    "BatchNormalization",
    "ClassToken",
    "Conv2D",
    "ConvolutionalAttention",
    "ConvolutionalProjection",
    "ConvolutionalProjectionAttention",
    "CosFace",
    "CosineClassifier",
    "DepthwiseConv2D",
    "DropPath",
    "FullyConvolutionalTransformer",
    "ImageToPatches",
    "LearnedPositionEmbedding",
    "MaxPooling2D",
    "MultiHeadSelfAttention",
    "PartialCosineClassifier",
    "RelativePositionBias",
    "Rescaling",
    "SequencePooling",
    "SinusoidalPositionEmbedding",
    "UnitNormalization",
]
