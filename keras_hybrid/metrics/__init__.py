"""Streaming Keras metrics."""

from keras_hybrid.metrics.target_cosine import MeanTargetCosine

__all__ = ["MeanTargetCosine"]
