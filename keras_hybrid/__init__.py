"""CNN + attention hybrids for Keras 3.

Sub-packages load on first use, so ``import keras_hybrid`` costs little more than ``import keras``.
"""

import importlib

from keras_hybrid._version import __version__

_SUBMODULES = (
    "applications",
    "data",
    "evaluation",
    "explain",
    "export",
    "layers",
    "losses",
    "metrics",
)
_REGISTRY_FUNCTIONS = ("create_model", "list_models", "model_info")

__all__ = ["__version__", *_SUBMODULES, *_REGISTRY_FUNCTIONS]


def __getattr__(name: str):
    """Import a sub-package or a registry function when it is first asked for."""
    if name in _SUBMODULES:
        return importlib.import_module(f"keras_hybrid.{name}")
    if name in _REGISTRY_FUNCTIONS:
        return getattr(importlib.import_module("keras_hybrid.applications.registry"), name)
    raise AttributeError(f"module 'keras_hybrid' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what ``__getattr__`` would load, too."""
    return sorted(__all__)
