"""Names for builders: what ``list_models``, ``create_model`` and ``model_info`` look up."""

import dataclasses
import difflib
import fnmatch
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras

__all__ = ["ModelInfo", "create_model", "list_models", "model_info", "register_model"]

# Importing a family's module registers its models.
_FAMILIES = (
    "astroformer",
    "atc",
    "botnet",
    "cct",
    "coatnet",
    "conformer",
    "convit",
    "convolutional_vision_transformer",
    "efficientnet",
    "efficientnet_vit",
    "face_transformer",
    "facerec",
    "facerec_small",
    "fusion",
    "iresnet",
    "kprpe",
    "mobilefacenet",
    "mobilenet_v2",
    "nat",
    "resnet",
    "resnet_fct",
    "san",
    "swin",
    "vit",
)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What the registry knows of a model.

    Attributes:
        name: The registered name.
        family: The module in ``keras_hybrid.applications`` that builds it.
        paper: Where the architecture comes from.
        input_shape: Default (height, width, channels).
        classes: Default number of classes, which ``parameters`` is counted with.
        classifier: Default kind of classifier, "cosine" or "dense".
        parameters: All weights of the default model, trainable or not.
        macs: Multiply-accumulates of convolutions and matrix products for one image.
        reconstruction: Whether the paper left enough open that this is our reading of it.
        ours: Whether the size (not the idea) is this library's own.
        limitations: Promise name → reason, for promises of the zoo that the model cannot keep.
    """

    name: str
    family: str
    paper: str
    input_shape: tuple[int, int, int]
    classes: int
    classifier: str
    parameters: int
    macs: int
    reconstruction: bool = False
    ours: bool = False
    limitations: dict[str, str] = dataclasses.field(default_factory=dict)


_BUILDERS: dict[str, Callable[..., keras.Model]] = {}
_INFOS: dict[str, ModelInfo] = {}


def register_model(builder: Callable[..., keras.Model], info: ModelInfo, **defaults: Any) -> None:
    """Register ``builder(**defaults)`` under ``info.name``.

    Args:
        builder: A function with the builders' common signature.
        info: Its facts; the registry-wide tests hold the model to them.
        **defaults: Arguments of ``builder`` that make this model; ``create_model``'s override.

    Raises:
        ValueError: If the name is taken.
    """
    if info.name in _INFOS:
        raise ValueError(f"A model named {info.name!r} is already registered.")

    @functools.wraps(builder)  # and with its signature
    def build(**kwargs) -> keras.Model:
        arguments = {"name": info.name, **defaults, **kwargs}
        if kwargs.get("input_shape") is None:
            # The registered shape, unless a tensor brings its own.
            tensor = kwargs.get("input_tensor")
            arguments["input_shape"] = defaults.get("input_shape") if tensor is None else None
        return builder(**arguments)

    _BUILDERS[info.name] = build
    _INFOS[info.name] = info


def _load_families() -> None:
    for family in _FAMILIES:
        importlib.import_module(f"keras_hybrid.applications.{family}")


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of registered models that match a shell pattern, sorted.

    Args:
        pattern: For instance ``"*vit*"``.
    """
    _load_families()
    return sorted(fnmatch.filter(_INFOS, pattern))


def model_signature(name: str) -> inspect.Signature:
    """Return the signature of a registered model's builder: what ``create_model`` hands on.

    Args:
        name: A name from ``list_models()``.

    Raises:
        ValueError: If no model has that name; the message suggests the nearest ones.
    """
    _check(name)
    return inspect.signature(_BUILDERS[name])


def create_model(name: str, /, *, remat: bool = False, **kwargs: Any) -> keras.Model:
    """Build a registered model.

    Args:
        name: A name from ``list_models()``.
        remat: Whether training computes attention maps again in the backward pass instead of
            keeping them (``remat`` of the attention layers): for many tokens and deep models, less
            memory for more time. The numbers are the same. Maps with dropout are kept: where a
            model has ``attention_dropout``, as CCT, CVT and ViT-Lite have by default, it does
            nothing.
        **kwargs: Passed to the builder: ``classes``, ``input_shape``, any architectural keyword,
            or another ``name`` for the model.

    Raises:
        ValueError: If no model has that name; the message suggests the nearest ones. If ``remat``
            is asked of a model without a layer that has it.
    """
    _check(name)
    model = _BUILDERS[name](**kwargs)
    if remat:
        attentions = list(_with_remat(model))
        if not attentions:
            raise ValueError(f"remat=True: {name!r} has no attention layer that supports remat.")
        for layer in attentions:
            layer.remat = True
    return model


def _with_remat(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _with_remat(layer)
        elif hasattr(layer, "remat"):
            yield layer


def model_info(name: str) -> ModelInfo:
    """Return the facts of a registered model.

    Raises:
        ValueError: If no model has that name; the message suggests the nearest ones.
    """
    _check(name)
    return _INFOS[name]


def _check(name: str) -> None:
    _load_families()
    if name not in _INFOS:
        near = difflib.get_close_matches(name, _INFOS, n=3, cutoff=0.4)
        hint = (
            f"Did you mean {', '.join(near)}?" if near else f"Known: {', '.join(sorted(_INFOS))}."
        )
        raise ValueError(f"No model is named {name!r}. {hint}")
