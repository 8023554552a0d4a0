"""CNN + attention hybrids for Keras 3: face recognition with margin losses, image classification.

Importing this package registers every layer, loss and model class, so that
``keras.models.load_model`` finds them. What works with data, plots or files loads on first use.
"""

import importlib

from keras_hybrid import _backend as _backend  # first: it may choose Keras's
from keras_hybrid import applications, initializers, layers, losses, metrics, optimizers, transfer
from keras_hybrid._version import __version__
from keras_hybrid.applications.features import feature_model
from keras_hybrid.applications.registry import create_model, list_models, model_info
from keras_hybrid.applications.resizing import transfer_weights

_LAZY = ("convert", "data", "distribution", "evaluation", "explain", "export")

__all__ = [
    "__version__",
    "applications",
    "create_model",
    "feature_model",
    "initializers",
    "layers",
    "list_models",
    "losses",
    "metrics",
    "model_info",
    "optimizers",
    "transfer",
    "transfer_weights",
    *_LAZY,
]


def __getattr__(name: str):
    """Import a sub-package when it is first asked for."""
    if name in _LAZY:
        return importlib.import_module(f"keras_hybrid.{name}")
    raise AttributeError(f"module 'keras_hybrid' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what ``__getattr__`` would load, too."""
    return sorted(__all__)
