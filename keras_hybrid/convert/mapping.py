"""Which tensor of a PyTorch checkpoint goes into which variable, and in which layout."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

__all__ = ["Target", "TorchMapping"]


def linear(weight: np.ndarray) -> np.ndarray:
    """(out, in) or (out, in, 1, 1) → Dense kernel (in, out)."""
    return weight.reshape(weight.shape[0], -1).T


def convolution(weight: np.ndarray) -> np.ndarray:
    """(out, in, height, width) → Conv2D kernel (height, width, in, out).

    A Linear (out, in) is taken as a 1 × 1 convolution.
    """
    if weight.ndim == 2:
        weight = weight[:, :, np.newaxis, np.newaxis]
    return weight.transpose(2, 3, 1, 0)


def depthwise(weight: np.ndarray) -> np.ndarray:
    """(channels, 1, height, width) → DepthwiseConv2D kernel (height, width, channels, 1)."""
    return weight.transpose(2, 3, 0, 1)


def same(weight: np.ndarray) -> np.ndarray:
    """As it is."""
    return weight


@dataclasses.dataclass(frozen=True)
class Target:
    """Where one tensor goes.

    Attributes:
        variable: The Keras variable; ``None``: the tensor is known, and this model has no place
            for it (a classifier's, for a model without top).
        layout: From the tensor's layout to the variable's.
    """

    variable: keras.Variable | None
    layout: Callable[[np.ndarray], np.ndarray] = same


class TorchMapping:
    """Collects, for one model, the original implementation's tensor names and their targets.

    Layers are named as in the model; ``"block0_attention.qkv"`` is the attribute ``qkv`` of the
    layer ``block0_attention``, and ``"convolutions.0"`` the first of a list. ``prefix`` is the
    module's name in the original implementation. A layer that the model does not have is an error
    unless ``optional``: then its tensors are known and left out.

    Args:
        model: The model that receives the weights.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.targets: dict[str, Target] = {}
        self._ignored: tuple[str, ...] = ()
        self._ignored_from: dict[str, int] = {}
        self._layers = {layer.name: layer for layer in model.layers}

    def has(self, layer: str) -> bool:
        """Whether the model has a layer of that name."""
        return layer in self._layers

    def count(self, pattern: str) -> int:
        """Return how many of ``pattern.format(0)``, ``pattern.format(1)``, … there are."""
        number = 0
        while self.has(pattern.format(number)):
            number += 1
        return number

    def layer(self, path: str):
        """Return the layer or its part that ``path`` names, or ``None``."""
        name, *parts = path.split(".")
        value = self._layers.get(name)
        for part in parts:
            if value is None:
                return None
            value = value[int(part)] if part.isdecimal() else getattr(value, part)
        return value

    def dense(self, path: str, prefix: str, *, optional: bool = False, layout=linear) -> None:
        """A Linear layer, or a 1 × 1 convolution used as one, with or without bias."""
        self._kernel_and_bias(path, prefix, "kernel", layout, optional)

    def conv(self, path: str, prefix: str, *, optional: bool = False, layout=None) -> None:
        """A convolution: grouped ones by their kernel, depthwise ones by the layer's class."""
        if layout is None:
            is_depthwise = isinstance(self.layer(path), keras.layers.DepthwiseConv2D)
            layout = depthwise if is_depthwise else convolution
        self._kernel_and_bias(path, prefix, "kernel", layout, optional)

    def norm(self, path: str, prefix: str, *, optional: bool = False) -> None:
        """A layer, group or batch normalisation; the latter with its moving statistics."""
        layer = self._layer(path, optional)
        names = {"weight": "gamma", "bias": "beta"}
        if layer is None or isinstance(layer, keras.layers.BatchNormalization):
            names |= {"running_mean": "moving_mean", "running_var": "moving_variance"}
        for torch_name, attribute in names.items():
            variable = getattr(layer, attribute, None)
            if layer is None or variable is not None:
                self._add(f"{prefix}.{torch_name}", Target(variable))

    def tensor(
        self, path: str, name: str, attribute: str, *, optional: bool = False, layout=same
    ) -> None:
        """One tensor, by its full name, into the layer's variable ``attribute``."""
        layer = self._layer(path, optional)
        self._add(name, Target(None if layer is None else getattr(layer, attribute), layout))

    def ignore(self, *names: str) -> None:
        """Tensors that hold nothing to be learnt, such as index tables."""
        for name in names:
            self._add(name, Target(None))

    def ignore_modules(self, *prefixes: str) -> None:
        """Modules whose tensors, as far as they have no target, are known and left out."""
        self._ignored += tuple(f"{prefix}." for prefix in prefixes)

    def ignore_modules_from(self, prefix: str, start: int) -> None:
        """The modules ``prefix.start`` and later ones of that list, known and left out."""
        self._ignored_from[prefix] = start

    def knows(self, name: str) -> bool:
        """Whether a tensor has a target or belongs to what is left out."""
        if name in self.targets or name.startswith(self._ignored):
            return True
        for prefix, start in self._ignored_from.items():
            number = name.removeprefix(f"{prefix}.").partition(".")[0]
            if name.startswith(f"{prefix}.") and number.isdecimal() and int(number) >= start:
                return True
        return False

    def _kernel_and_bias(self, path, prefix, kernel, layout, optional) -> None:
        layer = self._layer(path, optional)
        if layer is None:
            self._add(f"{prefix}.weight", Target(None))
            self._add(f"{prefix}.bias", Target(None))
            return
        self._add(f"{prefix}.weight", Target(getattr(layer, kernel), layout))
        if getattr(layer, "bias", None) is not None:
            self._add(f"{prefix}.bias", Target(layer.bias))

    def _layer(self, path: str, optional: bool):
        layer = self.layer(path)
        if layer is None and not optional:
            raise ValueError(
                f"The model {self.model.name!r} has no layer {path!r}, which this architecture's "
                "checkpoints have: was it built by another builder?"
            )
        return layer

    def _add(self, name: str, target: Target) -> None:
        if name in self.targets:
            raise ValueError(f"The tensor {name!r} is mapped twice.")
        self.targets[name] = target
