"""Chooses Keras's backend where it would look for a TensorFlow that is not installed."""

import importlib.util
import json
import os
import pathlib
import sys


def _installed(*names: str) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is not None]


def _configured() -> str | None:
    """Return the backend of the user's ``keras.json``, if there is one."""
    home = os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras"
    try:
        return json.loads(pathlib.Path(home, "keras.json").read_text("utf-8")).get("backend")
    except (OSError, ValueError, AttributeError):
        return None


if "keras" not in sys.modules and "KERAS_BACKEND" not in os.environ:
    others = _installed("jax", "torch")
    if not _installed("tensorflow") and _configured() not in others:
        if not others:
            raise ImportError(
                "Keras needs a backend: pip install 'keras-hybrid[tensorflow]', [jax] or [torch]"
            )
        os.environ["KERAS_BACKEND"] = others[0]
