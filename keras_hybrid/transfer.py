"""Transfer learning: what trains, how fast each layer does, and where new classes begin.

A new task starts with the classifier alone; then the network thaws from its end, its early layers
the more slowly the earlier they are:

    model = create_model("resnet50", weights="imagenet", classes=10)
    freeze(model, until="pool")  # compile and fit
    unfreeze(model, from_layer="stage4_block0_conv1", batch_norm=False)
    optimizer = discriminative_rates(AdamW(1e-4), model, layer_decay(model, 0.75))  # and again

Sources: Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification"
(arXiv:1801.06146), for discriminative rates, each layer's 2.6 times smaller than the next one's;
Bao et al. 2022, "BEiT" (arXiv:2106.08254), for a decay by transformer blocks. Keras's
`keras.optimizers.MultiOptimizer` carries them out. Qi et al. 2018, "Low-Shot Learning with
Imprinted Weights" (arXiv:1712.07136), for the centres of new classes.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_hybrid.applications.fusion import member_names

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "ScaledSchedule",
    "discriminative_rates",
    "freeze",
    "imprint",
    "layer_decay",
    "unfreeze",
]


def freeze(model: keras.Model, until: str | None = None, *, batch_norm: bool = True) -> None:
    """Stop training the layers from the input up to and with a named one.

    "Up to" is by the order of ``model.layers``, a topological one, in which models within the model
    stand for their layers. Later layers are left as they are. A frozen batch normalisation also
    runs in inference mode, on its stored statistics, even while the model trains: that is what
    ``trainable=False`` means to Keras. Compile the model afterwards.

    Args:
        model: A Functional or Sequential model.
        until: Name of the last layer to freeze; ``None``: all layers.
        batch_norm: ``False`` leaves batch normalisations as they are, so that their statistics can
            follow the new data; those inside another layer go with that layer in any case.

    Raises:
        ValueError: If no layer, or more than one, has that name.
    """
    layers = list(_leaves(model))
    last = len(layers) - 1 if until is None else _index(layers, until, "until", model)
    for layer in layers[: last + 1]:
        if batch_norm or not isinstance(layer, keras.layers.BatchNormalization):
            for part in layer._flatten_layers():
                part.trainable = False


def unfreeze(model: keras.Model, from_layer: str | None = None, *, batch_norm: bool = True) -> None:
    """Train the layers from a named one to the output, in the order that `freeze` goes by.

    Earlier layers, and the layers within them, are left as they are. Compile the model afterwards.

    Args:
        model: A Functional or Sequential model.
        from_layer: Name of the first layer to train; ``None``: all layers.
        batch_norm: ``False`` leaves batch normalisations as they are, also inside other layers:
            frozen ones stay in inference mode, which small batches need.

    Raises:
        ValueError: If no layer, or more than one, has that name.
    """
    layers = list(_leaves(model))
    first = 0 if from_layer is None else _index(layers, from_layer, "from_layer", model)
    states = [[(part, part.trainable) for part in layer._flatten_layers()] for layer in layers]
    # A model that does not train as a whole would hide what its layers do.
    for container in model._flatten_layers():
        if isinstance(container, keras.Model) and not container.trainable:
            container.trainable = True
    for index, parts in enumerate(states):
        # Each on its own, those that hold others first: Keras sets what is within a layer, too, but
        # on TensorFlow only if the layer itself changes.
        for part, trainable in parts:
            is_norm = isinstance(part, keras.layers.BatchNormalization)
            stays = index < first or (is_norm and not batch_norm)
            part.trainable = trainable if stays else True


def imprint(model: keras.Model, embeddings: ArrayLike, labels: ArrayLike) -> None:
    """Let a cosine classifier begin with the mean embedding of each class, not with random centres.

    A trained network already puts the images of a new person near one another; random centres
    would have to find them first, while their gradients take the network apart. Imprinted ones
    classify before any training (Qi et al. 2018, eq. 5):

        embeddings, _ = keras_hybrid.evaluation.embed(model, images)
        imprint(model, embeddings, labels)

    A centre takes the direction of the mean of its class's unit embeddings and keeps its length,
    which is nothing to the cosines, but how far an optimizer's step turns it. Of a class with
    several centres the first is imprinted. Classes without an embedding keep theirs.

    Args:
        model: A model whose layer ``predictions`` is a cosine or margin head.
        embeddings: (n, dim), of any length above 0.
        labels: (n,), whole numbers in [0, classes).

    Raises:
        ValueError: If the model ends in another layer, or an argument does not fit.
    """
    head = next((layer for layer in model.layers if layer.name == "predictions"), None)
    if not hasattr(head, "centers"):
        raise ValueError(
            f"model {model.name!r} has no layer 'predictions' with the centres of classes: "
            "build it with classifier='cosine'."
        )
    centers = keras.ops.convert_to_numpy(head.centers).copy()
    embeddings, labels = np.asarray(embeddings, "float64"), np.asarray(labels)
    if embeddings.ndim != 2 or embeddings.shape[1] != centers.shape[-1]:
        raise ValueError(
            f"embeddings must have shape (n, {centers.shape[-1]}), got {embeddings.shape}."
        )
    if labels.shape != embeddings.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels must be whole numbers of shape ({len(embeddings)},), got {labels.dtype} of "
            f"shape {labels.shape}."
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(centers)):
        raise ValueError(
            f"labels must lie in [0, {len(centers)}), got {labels.min()} to {labels.max()}."
        )
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("embeddings must be finite and not zero.")
    means = np.zeros((len(centers), embeddings.shape[1]))
    np.add.at(means, labels, embeddings / lengths)
    norms = np.linalg.norm(means, axis=1)
    found = np.flatnonzero(norms > 0)  # embeddings that cancel out have no direction either
    first = centers if centers.ndim == 2 else centers[:, 0]
    kept = np.linalg.norm(first[found], axis=1)
    first[found] = means[found] * (kept / norms[found])[:, np.newaxis]
    head.centers.assign(centers)


def _leaves(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield the layers in order, those of a model within the model in its place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer


def _index(layers: list[keras.layers.Layer], name: str, argument: str, model) -> int:
    names = [layer.name for layer in layers]
    if names.count(name) == 1:
        return names.index(name)
    if name in names:
        raise ValueError(
            f"{argument}={name!r} names {names.count(name)} layers of model {model.name!r}; give "
            "the model within it that has the one you mean."
        )
    raise ValueError(
        f"{argument}={name!r} is no layer of model {model.name!r}.{_near(name, names)}"
    )


def _near(name: str, names) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return f" Did you mean {', '.join(near)}?" if near else ""


@keras.saving.register_keras_serializable(package="keras_hybrid")
class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a constant.

    Args:
        schedule: A `keras.optimizers.schedules.LearningRateSchedule`.
        multiplier: Of its learning rate.
    """

    def __init__(
        self, schedule: keras.optimizers.schedules.LearningRateSchedule, multiplier: float
    ):
        self.schedule = schedule
        self.multiplier = multiplier

    def __call__(self, step):
        """Return the learning rate of a step."""
        return self.schedule(step) * self.multiplier

    def get_config(self):
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "multiplier": self.multiplier}

    @classmethod
    def from_config(cls, config):
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["multiplier"])


def layer_decay(model: keras.Model, decay: float = 1 / 2.6) -> dict[str, float]:
    """Return a multiplier for each layer, smaller the further it is from the output.

    Layers make one step of the decay together if their names agree up to their last part
    ``block…`` or ``stage…`` (``block0_attention``, ``block0_mlp_dense1``; ``stage1_block2_conv1``),
    or else up to the first underscore (``stem_conv``, ``stem_bn``); without a number there
    (``stem0_conv``), a name that comes back after another begins a new step (``conv2d``,
    ``batch_normalization``, ``conv2d_1``). Steps are counted in the order in which their first
    layers with weights stand in the model: the last has 1, the one before ``decay``, then
    ``decay``².

    The members of a `keras_hybrid.applications.LateFusion` or `Ensemble` decay side by side, each
    as it would alone, below what follows them. Other parallel branches alternate in one count;
    write the mapping by hand there, with patterns.

    Args:
        model: A Functional or Sequential model.
        decay: In (0, 1]; ULMFiT's 1/2.6 is for few steps, BEiT's are 0.65 to 0.9.

    Returns:
        Pattern of variable paths → multiplier, for `discriminative_rates`.

    Raises:
        ValueError: If ``decay`` is not in (0, 1], or the model is not built.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be in (0, 1], got {decay!r}.")
    _check_built(model)
    layers = [(layer.name, layer) for layer in _leaves(model)]
    return {
        pattern: decay**distance
        for distance, step in enumerate(_steps_back(layers))
        for layer in step
        for pattern in _patterns(layer)
    }


def _steps_back(layers: list[tuple[str, keras.layers.Layer]]) -> list[list[keras.layers.Layer]]:
    """Return the layers with weights in steps, the last first.

    Args:
        layers: In order, with their names, those of a fused member without the member's.
    """
    # The longest first: one member's name may begin another's.
    members = {f"{name}_": [] for name in sorted(member_names(layers), key=len, reverse=True)}
    before, after = [], []
    for name, layer in layers:
        prefix = next(filter(name.startswith, members), None)
        if prefix is not None:
            members[prefix].append((name.removeprefix(prefix), layer))
        else:
            (after if any(members.values()) else before).append((name, layer))
    branches = itertools.zip_longest(*map(_steps_back, members.values()), fillvalue=())
    together = [list(itertools.chain(*steps)) for steps in branches]
    return [*_named_alike(after)[::-1], *together, *_named_alike(before)[::-1]]


def _named_alike(layers: list[tuple[str, keras.layers.Layer]]) -> list[list[keras.layers.Layer]]:
    """Return the layers with weights in steps by their names, in order."""
    steps, found, previous = [], {}, None
    for name, layer in layers:
        if layer.weights:
            pattern = r"(.*(?:block|stage|expanded_conv)_?\d*[a-z]?(?=_|$)|[^_]*\d(?=_|$))|[^_]*"
            match = re.match(pattern, name)
            # What is numbered is one place in the network, also if others alternate with it.
            is_numbered, key = match[1] is not None, match[0]
            if key not in found or (key != previous and not is_numbered):
                found[key] = []
                steps.append(found[key])
            found[key].append(layer)
            previous = key
    return steps


def _check_built(model: keras.Model) -> None:
    if not model.weights:
        raise ValueError(f"model {model.name!r} has no weights yet; build it first.")


def _patterns(layer: keras.layers.Layer) -> list[str]:
    """Return patterns of the paths of a layer's variables, which in a Sequential begin with it."""
    own = f"{layer.path}/"
    return [
        f"{_literal(own)}*" if variable.path.startswith(own) else _literal(variable.path)
        for variable in layer.weights
    ]


def discriminative_rates(
    optimizer: keras.optimizers.Optimizer, model: keras.Model, multipliers: Mapping[str, float]
) -> keras.optimizers.MultiOptimizer:
    """Return an optimizer like the given one whose learning rate differs from variable to variable.

    Each multiplier gets a copy of ``optimizer`` with that many times the learning rate (a schedule
    is scaled likewise), in one `keras.optimizers.MultiOptimizer`. It trains in ``fit`` on every
    backend, under ``mixed_float16``, and is saved with the model. Weight decay is multiplied, too:
    Keras decays by learning rate × ``weight_decay``, so a multiplier of 0 holds a variable still.
    Variables that ``exclude_from_weight_decay`` names have none, also in the saved model.
    What belongs to Keras's class: there is no ``learning_rate`` to read or set (callbacks that do
    cannot be used; schedules can).

    Args:
        optimizer: Its configuration is copied, not its state.
        model: Whose variables the patterns are about, trainable now or not.
        multipliers: Pattern of variable paths → multiplier, as `layer_decay` returns it or by hand:
            ``{"predictions/*": 1.0, "block1?_*": 0.1, "*": 0.01}``. ``*`` stands for any
            characters, ``?`` for one. The first pattern that matches counts; none: 1.

    Raises:
        ValueError: If a pattern matches no variable, a multiplier is negative, the model is not
            built, or ``optimizer`` is one that cannot be divided.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(f"optimizer must be a keras.optimizers.Optimizer, got {optimizer!r}.")
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer | keras.optimizers.MultiOptimizer):
        raise ValueError(
            f"optimizer must be a plain one, got {type(optimizer).__name__}; compile() adds the "
            "scaling of the loss itself under mixed_float16."
        )
    if optimizer.global_clipnorm:
        raise ValueError(
            f"optimizer has global_clipnorm={optimizer.global_clipnorm}, but its parts would each "
            "clip by their own norm; use clipnorm or clipvalue."
        )
    _check_built(model)
    groups: dict[tuple[float, bool], list[str]] = {}
    layers = model._flatten_layers()
    sequentials = {layer.name for layer in layers if isinstance(layer, keras.Sequential)}
    rates = _rates(list(dict.fromkeys(variable.path for variable in model.weights)), multipliers)
    for variable in model.weights:
        kind = rates[variable.path], optimizer._use_weight_decay(variable)
        paths = groups.setdefault(kind, [])
        paths.append(variable.path)
        # In a model from a file, paths in a Sequential do not begin with its name.
        loaded = "/".join(itertools.dropwhile(sequentials.__contains__, variable.path.split("/")))
        if loaded not in rates:
            paths.append(loaded)
    parts = keras.optimizers.OptimizerMap(_scaled(optimizer, 1.0, True))
    for kind, paths in groups.items():
        # One key for each group: Keras saves and restores an optimizer for every key.
        if kind != (1.0, True):
            parts["|".join(map(re.escape, paths))] = _scaled(optimizer, *kind)
    return keras.optimizers.MultiOptimizer(parts, loss_scale_factor=optimizer.loss_scale_factor)


def _rates(paths: list[str], multipliers: Mapping[str, float]) -> dict[str, float]:
    """Return path → multiplier, of the first pattern that matches it."""
    for pattern, multiplier in multipliers.items():
        if not multiplier >= 0:
            raise ValueError(f"multipliers must not be negative, got {multiplier} for {pattern!r}.")
        if not fnmatch.filter(paths, pattern):
            raise ValueError(
                f"multipliers has the pattern {pattern!r}, which matches no variable."
                f"{_near(pattern, paths)}"
            )

    def rate(path: str) -> float:
        matching = (m for pattern, m in multipliers.items() if fnmatch.fnmatchcase(path, pattern))
        return float(next(matching, 1.0))

    return {path: rate(path) for path in paths}


def _literal(name: str) -> str:
    """Return the pattern that matches ``name`` alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _scaled(optimizer: keras.optimizers.Optimizer, multiplier: float, decays: bool):
    """Return a new optimizer of the same configuration, a scaled rate, and perhaps no decay."""
    rate = optimizer._learning_rate
    schedules = keras.optimizers.schedules.LearningRateSchedule
    if not isinstance(rate, keras.Variable | schedules):
        raise ValueError(
            "optimizer must have a number or a LearningRateSchedule as its learning_rate, got "
            f"{rate!r}."
        )
    config = optimizer.get_config()
    config["name"] = f"{optimizer.name}_{multiplier:g}".replace(".", "_").replace("-", "_")
    for key in () if decays else ("weight_decay", "adam_weight_decay"):  # the second is Muon's
        if config.get(key) is not None:
            config[key] = 0.0
    part = type(optimizer).from_config(config)
    if isinstance(rate, schedules):
        part.learning_rate = ScaledSchedule(rate, multiplier)
    else:
        part.learning_rate = float(keras.ops.convert_to_numpy(rate)) * multiplier
    return part
