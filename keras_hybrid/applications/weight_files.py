"""Whose weights a file has, before a model takes them."""

import contextlib
import io
import os
import re
import zipfile
from collections import Counter
from typing import Any

import h5py
import keras

from keras_hybrid.data.files import some

__all__ = ["check_layers"]


def check_layers(model: keras.Model, path: str | os.PathLike) -> None:
    """Raise ValueError where a file has the weights of a layer of another name.

    Keras tells layers by class and running number: of a deeper network it would take the first
    blocks and, as the last normalisation, one from their midst.
    """
    stored = _stored_names(path)
    names = {layer.name for layer in model.layers}
    counts: Counter[str] = Counter()
    wrong = []
    for layer in model.layers:
        kind = _snake_case(type(layer).__name__)
        group = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
        theirs = stored.get(group, layer.name)
        # Names that Keras gave itself, by its counters, occur on one side alone.
        is_elsewhere = layer.name in stored.values() or theirs in names
        if layer.weights and theirs != layer.name and is_elsewhere:
            wrong.append(f"{layer.name} would get those of {stored[group]}")
    if wrong:
        raise ValueError(
            f"weights={str(path)!r} are of another network than {model.name!r} with these "
            f"arguments: {some(wrong)}. keras_hybrid.transfer_weights takes what fits by name."
        )


def _stored_names(path: str | os.PathLike) -> dict[str, str]:
    """Return the layers' names in a weight file by their groups; empty where it tells none."""
    try:
        with contextlib.ExitStack() as stack:
            content: Any = path
            if str(path).endswith(".keras"):
                archive = stack.enter_context(zipfile.ZipFile(path))
                # A member is read from its start for each step back, of which HDF5 makes many.
                content = io.BytesIO(archive.read("model.weights.h5"))
            layers = stack.enter_context(h5py.File(content, "r")).get("layers", {})
            return {
                group: str(value["vars"].attrs["name"])
                for group, value in layers.items()
                if "name" in getattr(value.get("vars"), "attrs", ())
            }
    except (OSError, KeyError, zipfile.BadZipFile):
        return {}  # Keras says what is wrong with the file


def _snake_case(name: str) -> str:
    """Return the name of a class as Keras has it in weight files."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()
