"""ImageNet weights that Keras ships, for trunks that are one of the networks it ships them for.

Keras's own builder finds, downloads and checks its file (addresses and hashes are Keras's), and the
weights are copied from its model layer by layer. A trunk that computes anything else than that
network takes no such weights: it is refused, not filled with numbers of the right shape.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

__all__: list[str] = []

CLASSES = 1000

# Layer name → that layer's weights, as arrays.
Weights = dict[str, list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ImageNetWeights:
    """What ``weights="imagenet"`` means for a model.

    Attributes:
        network: Name of the builder in ``keras.applications``.
        fits: Whether the model's trunk is that network, or its beginning.
        needs: What makes it so, in words, for the error message.
        layer: Name of a layer of ours → its name there, or ``None`` for a layer not taken over.
        classifier: Whether the classifier sees what it sees there, so that it fits as well.
        arguments: Of the builder, besides ``include_top`` and ``weights``.
        adapt: Turns Keras's weights into what our layers hold, where they differ.
    """

    network: str
    fits: bool
    needs: str
    layer: Callable[[str], str | None]
    classifier: bool = False
    arguments: dict = dataclasses.field(default_factory=dict)
    adapt: Callable[[Weights], Weights] = dict

    def load(self, model: keras.Model) -> None:
        """Copy the weights into ``model``, and the classifier's if it has the same 1000 classes."""
        last = model.layers[-1]
        top = (
            self.classifier
            and last.name == "predictions"
            and isinstance(last, keras.layers.Dense)
            and last.units == CLASSES
        )
        builder = getattr(keras.applications, self.network)
        theirs = builder(include_top=top, weights="imagenet", **self.arguments)
        values = self.adapt({layer.name: layer.get_weights() for layer in theirs.layers})
        for layer in model.layers:
            name = self.layer(layer.name)
            if layer is last and top:
                layer.set_weights(values["predictions"])
            elif layer.weights and name is not None:
                layer.set_weights(values[name])


def keras_form(weights, keras_trunk: bool | None) -> bool:
    """Return whether a trunk is built as ``keras.applications`` builds it.

    Raises:
        ValueError: If its weights are asked for, but not its form.
    """
    imagenet = weights == "imagenet"
    if imagenet and keras_trunk is not None and not keras_trunk:
        raise ValueError(
            "weights='imagenet' needs the trunk of keras.applications, got "
            f"keras_trunk={keras_trunk!r}; leave it None or make it True."
        )
    return imagenet if keras_trunk is None else bool(keras_trunk)
