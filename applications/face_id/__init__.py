"""Enrol, verify and identify people by their faces, on one's own machine: see README.md."""

import importlib.util
import os

# Keras looks for TensorFlow unless told otherwise, even where LiteRT does the work.
if importlib.util.find_spec("tensorflow") is None:
    for _backend in ("torch", "jax"):
        if importlib.util.find_spec(_backend) is not None:
            os.environ.setdefault("KERAS_BACKEND", _backend)
