"""Loading a checkpoint of the original implementation into a model, strictly."""

import importlib
import importlib.util
import os
from collections.abc import Mapping

import keras
import numpy as np

from keras_hybrid.applications.registry import list_models, model_info
from keras_hybrid.convert.mapping import TorchMapping
from keras_hybrid.convert.reading import read_torch_weights

__all__ = ["load_torch_weights"]

SHOWN = 20  # names of each kind in an error


def load_torch_weights(
    model: keras.Model, weights: str | os.PathLike | Mapping, *, family: str | None = None
) -> None:
    """Load weights that have the original implementation's names and layouts.

    Nothing is changed unless everything fits. The number of classes must agree; a model without
    top takes a checkpoint with one and leaves the classifier out.

    Args:
        model: A model of this package.
        weights: A .pth, .pt, .bin, .safetensors or .npz file, or a dictionary
            (:func:`read_torch_weights`).
        family: The module in ``keras_hybrid.applications`` that built ``model``. Needed only if
            the model's name is neither a registered one nor a family's.

    Raises:
        ValueError: If a tensor is missing, unexpected or has another shape; all are listed. If
            the family is unknown or none of its checkpoints are.
    """
    mapping = _mapping(model, family)
    tensors = {
        name: value
        for name, value in read_torch_weights(weights).items()
        if not name.endswith("num_batches_tracked")
    }
    missing, misshapen, values = [], [], []
    for name, target in mapping.targets.items():
        if target.variable is None:
            continue
        if name not in tensors:
            missing.append(f"{name} for {target.variable.path}")
            continue
        tensor = tensors[name]
        shape = tuple(target.variable.shape)
        value = _laid_out(tensor, target.layout)
        if value is None or value.size != np.prod(shape) or _core(value.shape) != _core(shape):
            misshapen.append(f"{name} is {tensor.shape}, {target.variable.path} needs {shape}")
        else:
            values.append((target.variable, value.reshape(shape)))
    known = {id(target.variable) for target in mapping.targets.values()}
    problems = {
        "missing": missing,
        "wrong shape": misshapen,
        "unexpected": [name for name in tensors if not mapping.knows(name)],
        "no tensor is known for": [v.path for v in model.weights if id(v) not in known],
    }
    if any(problems.values()):
        raise ValueError(
            f"The weights do not fit the model {model.name!r}; nothing was changed."
            + "".join(_listed(kind, names) for kind, names in problems.items() if names)
        )
    for variable, value in values:
        variable.assign(value)


def _mapping(model: keras.Model, family: str | None) -> TorchMapping:
    families = {model_info(name).family for name in list_models()}
    if family is None:
        if model.name in list_models():
            family = model_info(model.name).family
        elif model.name in families:
            family = model.name
        else:
            raise ValueError(
                f"Give family=…: the model's name {model.name!r} is not a registered one. "
                f"Families: {', '.join(sorted(families))}."
            )
    if family not in families:
        raise ValueError(f"family must be one of {', '.join(sorted(families))}; got {family!r}.")
    module = f"keras_hybrid.convert.{family}"
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"No PyTorch checkpoints are known for the family {family!r}.")
    mapping = TorchMapping(model)
    importlib.import_module(module).map_weights(mapping)
    return mapping


def _listed(kind: str, names: list[str]) -> str:
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return f"\n  {kind}: " + "; ".join([*names[:SHOWN], *more])


def _laid_out(tensor: np.ndarray, layout) -> np.ndarray | None:
    try:
        return layout(tensor)
    except (ValueError, IndexError):  # another rank than the layout's
        return None


def _core(shape) -> tuple[int, ...]:
    """A shape without its ones: (1, 1, C) and (C,) hold the same numbers in the same order."""
    return tuple(n for n in shape if n != 1)
