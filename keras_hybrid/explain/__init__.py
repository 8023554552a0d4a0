"""Why a model answered as it did, and whom it confuses.

Functions of models take a batch of their images and return NumPy arrays, on every backend; those
named ``plot_…`` write a figure of such arrays.
"""

from keras_hybrid.explain.attention import (
    attention_maps,
    attention_rollout,
    convolutional_attention_maps,
    token_weights,
)
from keras_hybrid.explain.embeddings import (
    ConfusedPair,
    Projection,
    most_confused_pairs,
    project_embeddings,
)
from keras_hybrid.explain.grad_cam import default_layer, default_layers, grad_cam
from keras_hybrid.explain.plots import (
    plot_attention,
    plot_confused_pairs,
    plot_convolutional_attention,
    plot_grad_cam,
    plot_projection,
    plot_token_weights,
)
from keras_hybrid.explain.summary import Explanation, explain_image

__all__ = [
    "ConfusedPair",
    "Explanation",
    "Projection",
    "attention_maps",
    "attention_rollout",
    "convolutional_attention_maps",
    "default_layer",
    "default_layers",
    "explain_image",
    "grad_cam",
    "most_confused_pairs",
    "plot_attention",
    "plot_confused_pairs",
    "plot_convolutional_attention",
    "plot_grad_cam",
    "plot_projection",
    "plot_token_weights",
    "project_embeddings",
    "token_weights",
]
