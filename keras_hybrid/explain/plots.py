"""Figures of what a model looked at, for screen and print.

Every function writes one file, in the format its suffix names (png, svg, pdf), and returns its
path. How they look is in `keras_hybrid.explain.panels`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_hybrid.evaluation.plots import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    new_figure,
    save_figure,
)
from keras_hybrid.explain.embeddings import ConfusedPair, Projection
from keras_hybrid.explain.panels import (
    GAP,
    GRAD_CAM_CAPTION,
    PARTS,
    TEXT_LINE,
    WIDTH,
    Panel,
    as_bytes,
    attention_caption,
    attention_of,
    draw,
    grad_cam_panels,
    head_panels,
    part_caption,
    part_panels,
    query_of,
    rollout_caption,
    rollout_panels,
    token_caption,
    token_weight_panels,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "plot_attention",
    "plot_confused_pairs",
    "plot_convolutional_attention",
    "plot_grad_cam",
    "plot_projection",
    "plot_token_weights",
]

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_MARKERS = ("o", "^", "s", "D", "v", "P", "X")


def plot_grad_cam(
    images: ArrayLike, cams: ArrayLike, path: str | Path, titles: Sequence[str] | None = None
) -> Path:
    """Draw images, their Grad-CAM, and the images seen through it; a row for each image.

    Args:
        images: (batch, height, width, channels) in [0, 255].
        cams: (batch, height, width) in [0, 1], as `grad_cam` returns.
        path: File to write.
        titles: A line for each image, such as the class that is explained.

    Raises:
        ValueError: If the shapes do not fit.
        ImportError: If matplotlib is missing.
    """
    images = _check_images(images, titles)
    cams = np.asarray(cams, "float32")
    if cams.shape != images.shape[:3]:
        raise ValueError(f"cams must have the shape {images.shape[:3]}, got {cams.shape}.")
    titles = titles or ["image"] * len(images)
    rows = [
        [Panel(title, image), *grad_cam_panels(image, cam)]
        for title, image, cam in zip(titles, images, cams, strict=True)
    ]
    return save_figure(draw(rows, GRAD_CAM_CAPTION), path)


def plot_token_weights(
    images: ArrayLike, weights: ArrayLike, path: str | Path, titles: Sequence[str] | None = None
) -> Path:
    """Draw the share that sequence pooling gives each token; a row for each image.

    Args:
        images: (batch, height, width, channels) in [0, 255].
        weights: (batch, tokens), each row summing to 1, as `token_weights` returns.
        path: File to write.
        titles: A line for each image.

    Raises:
        ValueError: If the shapes do not fit.
        ImportError: If matplotlib is missing.
    """
    images = _check_images(images, titles)
    weights = np.asarray(weights, "float32")
    if weights.ndim != 2 or len(weights) != len(images):
        raise ValueError(f"weights must have shape ({len(images)}, tokens), got {weights.shape}.")
    titles = titles or ["image"] * len(images)
    top = float(weights.max())
    rows = [
        [Panel(title, image), *token_weight_panels(image, row, top)]
        for title, image, row in zip(titles, images, weights, strict=True)
    ]
    return save_figure(draw(rows, token_caption(weights.shape[1])), path)


def plot_attention(
    images: ArrayLike,
    attention: ArrayLike,
    path: str | Path,
    query: str | int | Sequence[int] | None = None,
    titles: Sequence[str] | None = None,
) -> Path:
    """Draw what a token attends to, head by head; or a rollout.

    Args:
        images: (batch, height, width, channels) in [0, 255].
        attention: One layer of `attention_maps`, (batch, heads, queries, keys), or what
            `attention_rollout` returns, (batch, queries, keys).
        path: File to write.
        query: Whose attention: the number of a token, one for all images or one for each, which is
            framed in the image; or ``"mean"`` of all queries. ``None``: the class token where there
            is one, else ``"mean"``.
        titles: A line for each image.

    Raises:
        ValueError: If the shapes do not fit, the tokens are no grid with the images' proportions,
            or there is no such query.
        ImportError: If matplotlib is missing.
    """
    images = _check_images(images, titles)
    attention = np.asarray(attention, "float32")
    if attention.ndim not in (3, 4) or len(attention) != len(images):
        raise ValueError(
            f"attention must have shape ({len(images)}, heads, queries, keys) or ({len(images)}, "
            f"queries, keys), got {attention.shape}."
        )
    rows, caption = [], ""
    titles = titles or ["image"] * len(images)
    for i, (title, image) in enumerate(zip(titles, images, strict=True)):
        keys, whose, mark = attention_of(attention[i], query_of(query, i, len(images)), image)
        if keys.ndim == 1:
            panels = rollout_panels(keys, image)
            caption = rollout_caption(whose)
        else:
            panels = head_panels(keys, image)
            caption = attention_caption(whose)
        rows.append([Panel(title, image, mark=mark), *panels])
    return save_figure(draw(rows, caption), path)


def plot_convolutional_attention(
    images: ArrayLike,
    maps: Mapping[str, ArrayLike],
    path: str | Path,
    query: str | int | Sequence[int] | None = None,
    head: int | None = None,
    titles: Sequence[str] | None = None,
) -> Path:
    """Draw the convolutional attention beside that of queries and keys; a row for each image.

    Above each part stands how many keys it looks at: e to the entropy of its rows, which is the
    number of keys for even rows and 1 for rows with a single one. A part that looks at all keys
    alike decides nothing.

    Args:
        images: (batch, height, width, channels) in [0, 255].
        maps: One layer of `convolutional_attention_maps`: part → (batch, heads, queries, keys).
        path: File to write.
        query: As of `plot_attention`.
        head: The head to draw; ``None``: their mean.
        titles: A line for each image.

    Raises:
        ValueError: If the shapes do not fit, the tokens are no grid with the images' proportions,
            or there is no such query or head.
        ImportError: If matplotlib is missing.
    """
    images = _check_images(images, titles)
    maps = {part: np.asarray(values, "float32") for part, values in maps.items()}
    shapes = {values.shape for values in maps.values()}
    shape = next(iter(shapes), ())
    unknown = set(maps) - set(PARTS)
    if unknown or len(shapes) != 1 or len(shape) != 4 or shape[0] != len(images):
        raise ValueError(
            f"maps must hold some of {', '.join(PARTS)}, each of the same shape ({len(images)}, "
            f"heads, queries, keys); got { {part: v.shape for part, v in maps.items()} }."
        )
    if head is not None and not 0 <= head < shape[1]:
        raise ValueError(f"head must be None or in [0, {shape[1]}), got {head!r}.")
    rows, whose = [], ""
    titles = titles or ["image"] * len(images)
    for i, (title, image) in enumerate(zip(titles, images, strict=True)):
        one = {part: values[i] for part, values in maps.items()}
        panels, whose, mark = part_panels(one, query_of(query, i, len(images)), image, head)
        rows.append([Panel(title, image, mark=mark), *panels])
    return save_figure(draw(rows, part_caption(whose, head)), path)


def plot_projection(
    projection: Projection,
    labels: ArrayLike,
    path: str | Path,
    class_names: Mapping[Any, str] | Sequence[str] | None = None,
    highlight: Sequence[Any] | None = None,
) -> Path:
    """Draw embeddings on a plane, seven identities with colours and markers, the others grey.

    Args:
        projection: Two-dimensional, as `project_embeddings` returns.
        labels: The identity of each point, (n,).
        path: File to write.
        class_names: Names to show, by label.
        highlight: Labels of at most seven identities to colour. ``None``: those with the most
            images.

    Raises:
        ValueError: If the shapes do not fit, or more than seven or unknown labels are highlighted.
        ImportError: If matplotlib is missing.
    """
    points, labels = projection.points, np.asarray(labels)
    if points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1]:
        raise ValueError(
            "projection must have points (n, 2), and labels the shape (n,); got "
            f"{points.shape} and {labels.shape}."
        )
    people, counts = np.unique(labels, return_counts=True)
    if highlight is None:
        most = np.sort(np.argsort(-counts, kind="stable")[: len(_COLOURS)])
        highlight = people[most].tolist()
    unknown = [who for who in highlight if who not in people]
    if len(highlight) > len(_COLOURS) or unknown:
        raise ValueError(
            f"highlight must hold at most {len(_COLOURS)} of the labels, got {highlight!r}."
        )
    figure = new_figure(6.4, 4.6)
    axes = figure.add_subplot()
    others = ~np.isin(labels, highlight)
    if others.any():
        count = len(people) - len(highlight)
        axes.scatter(*points[others].T, s=9, c="#BBBBBB", label=f"{count} others", linewidths=0)
    for who, colour, marker in zip(highlight, _COLOURS, _MARKERS, strict=False):
        name = who if class_names is None else class_names[who]
        axes.scatter(
            *points[labels == who].T,
            s=30,
            c=colour,
            marker=marker,
            label=str(name).replace("$", r"\$"),
            edgecolors="white",
            linewidths=0.5,
        )
    if projection.method == "pca":
        for axis, number in ((axes.xaxis, 0), (axes.yaxis, 1)):
            share = projection.explained_variance[number]
            axis.set_label_text(f"principal component {number + 1} ({share:.0%} of the variance)")
        axes.grid(alpha=0.25)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("t-SNE: neighbours are near; sizes and distances of clusters mean nothing")
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return save_figure(figure, path)


def plot_confused_pairs(
    images: ArrayLike,
    pairs: Sequence[ConfusedPair],
    path: str | Path,
    class_names: Mapping[Any, str] | Sequence[str] | None = None,
) -> Path:
    """Draw the two most similar images of each pair of identities, with the pair's similarity.

    Args:
        images: (n, height, width, channels) in [0, 255], those the pairs were found among.
        pairs: As `most_confused_pairs` returns.
        path: File to write.
        class_names: Names to show, by label.

    Raises:
        ValueError: If there are no pairs or the images are not those.
        ImportError: If matplotlib is missing.
    """
    images = _check_images(images)
    last = max((max(p.first_image, p.second_image) for p in pairs), default=-1)
    if not pairs or last >= len(images):
        raise ValueError(
            f"pairs must hold at least one pair of the {len(images)} images, got {len(pairs)} "
            f"pairs with images up to number {last}."
        )

    def name(label) -> str:
        full = str(label if class_names is None else class_names[label])
        return (full if len(full) <= 15 else f"{full[:14]}…").replace("$", r"\$")

    columns = min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    width = (WIDTH - GAP * (2 * 3 + 1)) / (2 * 3)
    height = width * images.shape[1] / images.shape[2]
    step = height + 3.6 * TEXT_LINE
    total = GAP + columns * 2 * (width + GAP), rows * step + TEXT_LINE
    figure = new_figure(*total, layout="none")
    for place, pair in enumerate(pairs):
        row, column = divmod(place, columns)
        bottom = total[1] - (row + 1) * step
        left = GAP + column * 2 * (width + GAP)
        for side, label, number in (
            (left, pair.first, pair.first_image),
            (left + width + GAP / 3, pair.second, pair.second_image),
        ):
            axes = figure.add_axes(
                [side / total[0], bottom / total[1], width / total[0], height / total[1]]
            )
            axes.imshow(as_bytes(images[number]), aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(name(label), fontsize=8, pad=3)
        figure.text(
            (left + width + GAP / 6) / total[0],
            (bottom + height + 1.5 * TEXT_LINE) / total[1],
            f"{place + 1}. cosine {pair.similarity:.3f}",
            fontsize=9,
            ha="center",
        )
    return save_figure(figure, path)


def _check_images(images: ArrayLike, titles: Sequence[str] | None = None) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(
            "images must have shape (batch, height, width, channels) with a batch of at least 1, "
            f"got {images.shape}."
        )
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"titles must hold {len(images)} lines, got {len(titles)}.")
    return images
