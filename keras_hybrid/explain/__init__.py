"""Why a model answered as it did: Grad-CAM, attention maps, attention rollout, token weights.

All functions take a model and a batch of its images and return NumPy arrays, on every backend.
"""

from keras_hybrid.explain.attention import attention_maps, attention_rollout, token_weights
from keras_hybrid.explain.grad_cam import default_layer, grad_cam

__all__ = [
    "attention_maps",
    "attention_rollout",
    "default_layer",
    "grad_cam",
    "token_weights",
]
