"""One figure of all that can be said about a model's answer to one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_hybrid.evaluation.inference import predict
from keras_hybrid.evaluation.plots import save_figure
from keras_hybrid.explain import panels
from keras_hybrid.explain.attention import (
    attention_maps,
    attention_rollout,
    convolutional_attention_maps,
    token_weights,
)
from keras_hybrid.explain.grad_cam import default_layers, grad_cam
from keras_hybrid.layers.margin import CosineClassifier

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["METHODS", "Explanation", "explain_image"]

METHODS = ("auto", "grad-cam", "attention", "rollout", "tokens", "convolutional")
_IN_A_LINE = 4  # of panels that do not belong together
_WITH_LAYER = ("grad-cam", "attention", "convolutional")


@dataclass(frozen=True)
class Explanation:
    """What a figure shows, and what the model said.

    Attributes:
        path: The figure.
        layers: Method → layers that it looked at, as far as it looked at particular ones.
        predicted: The class with the highest score; None for a model without classes.
        score: Its score.
        score_kind: ``"cosine"``, ``"probability"``, ``"logit"`` or ``"score"``.
        explained: The class that Grad-CAM explains; None without Grad-CAM.
        notes: What could not be shown, and why.
    """

    path: Path
    layers: dict[str, tuple[str, ...]]
    predicted: int | None = None
    score: float | None = None
    score_kind: str = ""
    explained: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class _Figure:
    """A figure in the making."""

    model: keras.Model
    image: np.ndarray  # (1, height, width, channels), as the model takes it
    photo: np.ndarray  # (height, width, channels) in [0, 255], as it is drawn
    layers_asked: tuple[str, ...]
    class_index: int | None
    rows: list = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    query: int | None = None
    mark: tuple | None = None


def explain_image(
    model: keras.Model,
    image: ArrayLike,
    path: str | Path,
    method: str = "auto",
    layer: str | Sequence[str] | None = None,
    class_index: int | None = None,
    class_names: Sequence[str] | None = None,
    input_range: tuple[float, float] = (0, 255),
) -> Explanation:
    """Draw why a model answered as it did to one image.

    Args:
        model: A trained model.
        image: (height, width, channels), as the model takes it.
        path: File to write; its suffix names the format (png, svg, pdf).
        method: ``"grad-cam"``; ``"attention"``: one layer's heads; ``"rollout"``; ``"tokens"``:
            sequence pooling's weights; ``"convolutional"``: FaceRec's convolutional attention
            beside that of queries and keys. ``"auto"``: each that the model can give, single heads
            only where there is no rollout. Where a model pools a sequence, attention is that of the
            token with the largest weight; else that of the class token, or of the average one.
        layer: The layer Grad-CAM explains, or several, side by side; or the one whose attention is
            drawn. ``None``: those of `default_layers`, and the last attention layer.
        class_index: The class that Grad-CAM explains; ``None``: the one with the highest score.
        class_names: The classes' names, for the figure.
        input_range: Values that the model takes for black and for white.

    Returns:
        What the figure shows.

    Raises:
        ValueError: If the model cannot give what is asked for, an argument has no meaning, or a
            layer or class is unknown, or the image goes beyond ``input_range``.
        ImportError: If matplotlib is missing.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    layers = (layer,) if isinstance(layer, str) else tuple(layer or ())
    if layers and method not in (*_WITH_LAYER, "auto"):
        raise ValueError(f"method={method!r} looks at all layers: leave layer={layer!r} out.")
    if len(layers) > 1 and method in ("attention", "convolutional"):
        raise ValueError(f"method={method!r} draws one layer: got layer={layer!r}.")
    image = np.asarray(image)
    if image.ndim != 3:
        raise ValueError(f"image must have shape (height, width, channels), got {image.shape}.")
    low, high = input_range
    if not low < high:
        raise ValueError(f"input_range must be (low, high) with low < high, got {input_range}.")
    smallest, largest = float(image.min()), float(image.max())
    if not low <= smallest <= largest <= high:
        raise ValueError(
            f"image must have values in input_range [{low:g}, {high:g}], received values in "
            f"[{smallest:g}, {largest:g}]. Give the range that the model takes in input_range."
        )
    photo = (image.astype("float32") - low) * (255 / (high - low))
    facts = _answer(model, image)
    if not facts and (class_index is not None or method == "grad-cam"):
        raise ValueError(f"Model {model.name!r} ends in no classes, so none can be explained.")
    classes = model.outputs[0].shape[-1] if facts else 0
    if class_names is not None and len(class_names) != classes:
        raise ValueError(f"class_names must hold {classes} names, got {len(class_names)}.")
    figure = _Figure(model, image[np.newaxis], photo, layers, class_index)
    _choose_query(figure)
    notes: list[str] = []
    if method == "auto":
        notes = _draw_all(figure, has_classes=bool(facts))
    else:
        _DRAW[method](figure)

    def named(index: int) -> str:
        if class_names is not None:
            return class_names[index]
        return f"class {index}" if classes > 1 else "the only output"

    title, explained = "image", None
    if facts:
        title = f"{named(facts['predicted'])}\n{facts['score_kind']} {facts['score']:.2f}"
    if "grad-cam" in figure.layers:
        explained = facts["predicted"] if class_index is None else class_index
        if explained != facts["predicted"]:
            figure.captions.insert(0, f"Grad-CAM explains {named(explained)}.")
    photo = panels.Panel(title, photo, mark=figure.mark)
    rows = [[photo]]
    for row in figure.rows:  # what belongs together stays side by side
        if len(rows[-1]) + len(row) > _IN_A_LINE and rows != [[photo]]:
            rows.append([])
        rows[-1] += row
    written = save_figure(panels.draw(rows, "\n".join(figure.captions)), path)
    return Explanation(written, figure.layers, **facts, explained=explained, notes=tuple(notes))


def _answer(model: keras.Model, image: np.ndarray) -> dict[str, Any]:
    """Return the class with the highest score, its score and what kind of number that is."""
    outputs = getattr(model, "outputs", None) or []
    last = outputs[0]._keras_history.operation if len(outputs) == 1 else None
    # Classes come from a layer: a bare operation is the mean or maximum of a model without top.
    if not isinstance(last, keras.layers.Layer) or len(outputs[0].shape) != 2:
        return {}
    if last.name in ("embedding", "unit_embedding"):
        return {}
    scores = predict(model, image[np.newaxis])[0]
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    kind = {"softmax": "probability", "sigmoid": "probability", "linear": "logit"}.get(activation)
    if isinstance(last, CosineClassifier):
        kind = "cosine"
    best = int(scores.argmax())
    return {"predicted": best, "score": float(scores[best]), "score_kind": kind or "score"}


def _choose_query(figure: _Figure) -> None:
    """Choose the token with the largest weight, where a sequence is pooled."""
    try:
        weights = token_weights(figure.model, figure.image)
    except ValueError:
        return
    figure.query = int(weights[0].argmax())


def _draw_all(figure: _Figure, has_classes: bool) -> list[str]:
    """Draw what the model has; returns a note on each thing it has not."""
    notes = []

    def attempt(name: str) -> None:
        try:
            _DRAW[name](figure)
        except ValueError as error:
            notes.append(f"{name}: {error}")

    if not has_classes:
        notes.append("grad-cam: the model ends in no classes.")
    elif figure.layers_asked or figure.class_index is not None:
        _draw_grad_cam(figure)  # what was asked for must not go missing
    else:
        attempt("grad-cam")
    figure.layers_asked = ()  # a figure of all takes them for Grad-CAM's
    for name in ("tokens", "rollout", "convolutional"):
        attempt(name)
    if not {"rollout", "convolutional"} & set(figure.layers):
        attempt("attention")  # single heads are for those who ask, or where nothing else is
    if not figure.rows:
        raise ValueError(f"Model {figure.model.name!r} gives nothing to show: {' '.join(notes)}")
    return notes


def _draw_grad_cam(figure: _Figure) -> None:
    layers = figure.layers_asked or tuple(default_layers(figure.model))
    drawn = []
    for layer in layers:
        (cam,) = grad_cam(figure.model, figure.image, figure.class_index, layer=layer)
        drawn.append(panels.grad_cam_panels(figure.photo, cam))
    if len(layers) == 1:
        figure.rows += drawn
    else:  # side by side: the image seen through each layer's map, and the map below it
        through, maps = [], [panels.Panel("")]
        for layer, (cam_panel, seen_panel) in zip(layers, drawn, strict=True):
            through.append(replace(seen_panel, title=f"seen through\n{layer}"))
            maps.append(replace(cam_panel, title=f"Grad-CAM\n{layer}"))
        figure.rows += [through, maps]
    figure.captions.append(panels.GRAD_CAM_CAPTION)
    figure.layers["grad-cam"] = layers


def _draw_tokens(figure: _Figure) -> None:
    (weights,) = token_weights(figure.model, figure.image)
    figure.rows.append(panels.token_weight_panels(figure.photo, weights))
    figure.captions.append(panels.token_caption(len(weights)))
    figure.layers["tokens"] = ()


def _draw_rollout(figure: _Figure) -> None:
    (rollout,) = attention_rollout(figure.model, figure.image)
    keys, whose, figure.mark = panels.attention_of(rollout, figure.query, figure.photo)
    figure.rows.append(panels.rollout_panels(keys, figure.photo))
    figure.captions.append(panels.rollout_caption(whose))
    figure.layers["rollout"] = ()


def _draw_attention(figure: _Figure) -> None:
    name, scores = _last(attention_maps(figure.model, figure.image), figure.layers_asked)
    if len(scores) > 1:
        raise ValueError(
            f"Layer {name!r} attends within {len(scores)} windows; no token looks at all the image."
        )
    keys, whose, figure.mark = panels.attention_of(scores[0], figure.query, figure.photo)
    figure.rows.append(panels.head_panels(keys, figure.photo))
    figure.captions.append(panels.attention_caption(whose))
    figure.layers["attention"] = (name,)


def _draw_convolutional(figure: _Figure) -> None:
    maps = convolutional_attention_maps(figure.model, figure.image)
    name, parts = _last(maps, figure.layers_asked)
    one = {part: values[0] for part, values in parts.items()}
    drawn, whose, figure.mark = panels.part_panels(one, figure.query, figure.photo)
    figure.rows.append(drawn)
    figure.captions.append(panels.part_caption(whose))
    figure.layers["convolutional"] = (name,)


_DRAW: dict[str, Callable[[_Figure], None]] = {
    "grad-cam": _draw_grad_cam,
    "attention": _draw_attention,
    "rollout": _draw_rollout,
    "tokens": _draw_tokens,
    "convolutional": _draw_convolutional,
}


def _last(maps: dict[str, Any], asked: tuple[str, ...]) -> tuple[str, Any]:
    """Return the name and the maps of a layer, the last one if none is asked for."""
    name = asked[0] if asked else list(maps)[-1]
    if name not in maps:
        raise ValueError(f"No attention layer is named {name!r}. There are {', '.join(maps)}.")
    return name, maps[name]
