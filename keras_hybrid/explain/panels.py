"""What the figures of attention and Grad-CAM are put together of: panels, captions, a page.

Maps are drawn in viridis, whose brightness rises with the value: colour-blind readers and grey
prints lose nothing. A map never lies over the image, where its colours would mix with the face's;
beside it the image is shown as bright as the map is at each place. Tokens are drawn as the squares
they are, not smoothed. No text is below 8 points.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from keras_hybrid.evaluation.plots import new_figure
from keras_hybrid.explain.grid import has_class_token, on_grid, token_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches. The width is that of a page's text, so that nothing shrinks in print.
WIDTH, LARGEST_PANEL, GAP = 6.4, 1.9, 0.12
TEXT_LINE, SCALE = 0.15, 0.53
MOST_IN_A_LINE = 5
COLOUR_MAP = "viridis"
PARTS = {
    "query_key": "queries, keys",
    "convolutional": "convolutional",
    "position": "position",
    "combined": "all together",
}
_DARKEST = 0.25  # of the image where the map is 0, so that one sees where that is
GRAD_CAM_CAPTION = (
    "Grad-CAM: what raises the score of the class, with the layer's resolution. Each map is "
    "divided by its own maximum, so it says where, not how much."
)


@dataclass(frozen=True, eq=False)
class Panel:
    """One square of a figure: an image, a map, an image seen through a map, or an empty place.

    Attributes:
        title: What it shows.
        image: (height, width, channels) in [0, 255]; None for a map alone.
        values: Map (rows, columns), at least 0; None for an image alone.
        label: What the map's scale counts; maps of one label and top share a scale.
        top: The scale's end; None: the map's maximum.
        mark: A cell to frame, (row, column, rows, columns) of its grid.
    """

    title: str
    image: np.ndarray | None = None
    values: np.ndarray | None = None
    label: str = ""
    top: float | None = None
    mark: tuple[int, int, int, int] | None = None


def grad_cam_panels(image: np.ndarray, cam: np.ndarray) -> list[Panel]:
    """Return a map's panel, and one of the image seen through it."""
    return [
        Panel("Grad-CAM", values=cam, label="share of the maximum", top=1.0),
        Panel("seen through it", image, cam, top=1.0),
    ]


def token_weight_panels(
    image: np.ndarray, weights: np.ndarray, top: float | None = None
) -> list[Panel]:
    """Return the panel of sequence pooling's weights, and one of the image seen through it."""
    values = _grid_of(weights, image)
    top = top or float(values.max())
    return [
        Panel("SeqPool's weights", values=values, label="share of the pooled vector", top=top),
        Panel("seen through it", image, values, top=top),
    ]


def token_caption(tokens: int) -> str:
    """Say what the panels of sequence pooling's weights show."""
    return (
        "SeqPool: the share each token has in the pooled vector. All shares sum to 1; an even one "
        f"is {1 / tokens:.2g}."
    )


def rollout_panels(keys: np.ndarray, image: np.ndarray) -> list[Panel]:
    """Return the panel of a rollout's row (keys,), and one of the image seen through it."""
    drawn = _attention_panel("rollout", keys, image)
    return [drawn, Panel("seen through it", image, drawn.values, top=drawn.top)]


def rollout_caption(whose: str) -> str:
    """Say what a rollout's panel shows."""
    return (
        f"Rollout: how much of each input token reaches {whose} through all attention layers, if "
        "these alone moved anything."
    )


def attention_caption(whose: str) -> str:
    """Say what the panels of an attention layer's heads show."""
    itself = ", with that of the token on itself" if whose == "the class token" else ""
    return f"What {whose} attends to; each head's weights sum to 1{itself}."


def part_caption(whose: str, head: int | None = None) -> str:
    """Say what the panels of convolutional attention show."""
    shown = "mean of the heads" if head is None else f"head {head + 1}"
    return (
        f"What {whose} attends to ({shown}), by each part of the logits alone; the product of the "
        "parts of a head, normalised, is the attention. The fewer keys a part looks at, the more "
        "it decides. Each panel has a scale of its own."
    )


def head_panels(scores: np.ndarray, image: np.ndarray) -> list[Panel]:
    """Return a panel for each head's keys (heads, keys), and for their mean if there are several.

    All have the same scale.
    """
    heads = [(f"head {i + 1}", keys) for i, keys in enumerate(scores)]
    if len(heads) > 1:
        heads.insert(0, (f"mean of {len(heads)} heads", scores.mean(axis=0)))
    top = max(float(_grid_of(keys, image).max()) for _, keys in heads)
    return [_attention_panel(title, keys, image, top) for title, keys in heads]


def part_panels(
    maps: Mapping[str, np.ndarray],
    query: int | str | None,
    image: np.ndarray,
    head: int | None = None,
) -> tuple[list[Panel], str, tuple | None]:
    """Return a panel for each part of one image's logits, whose attention it is, and its cell."""
    panels, whose, mark = [], "", None
    for part, name in PARTS.items():
        if part in maps:
            scores = maps[part] if head is None else maps[part][head : head + 1]
            keys, whose, mark = attention_of(scores, query, image, average=False)
            # Rows are counted before they are averaged, which makes them wider.
            entropy = -(keys * np.log(np.maximum(keys, 1e-30))).sum(axis=-1)
            count = float(np.exp(entropy).mean())
            title = f"{name}\n{count:.3g} of {keys.shape[-1]} keys"
            panels.append(_attention_panel(title, keys.mean(axis=(0, 1)), image))
    return panels, whose, mark


def attention_of(
    scores: np.ndarray, query: int | str | None, image: np.ndarray, average: bool = True
) -> tuple[np.ndarray, str, tuple[int, int, int, int] | None]:
    """Choose the rows of a query from (…, queries, keys).

    Args:
        scores: Of one image.
        query: A token's number, ``"mean"``, or None: the class token or ``"mean"``.
        image: (height, width, channels).
        average: Whether to return the mean over the chosen queries, (…, keys), rather than their
            rows (…, chosen, keys).

    Returns:
        The rows; whose attention it is, in words; and the query's cell, (row, column, rows,
        columns), unless it has none.

    Raises:
        ValueError: If there is no such query.
    """
    size, tokens = image.shape[:2], scores.shape[-2]
    is_led = has_class_token(tokens, size)
    if query is None:
        query = 0 if is_led else "mean"
    if query == "mean":
        return (scores.mean(axis=-2) if average else scores), "the average token", None
    if isinstance(query, bool) or not isinstance(query, int | np.integer):
        raise ValueError(
            f"query must be None, 'mean', a token's number or one for each image, got {query!r}."
        )
    if not 0 <= query < tokens:
        raise ValueError(f"query must be in [0, {tokens}), got {query}.")
    rows = scores[..., query, :] if average else scores[..., query : query + 1, :]
    if is_led and query == 0:
        return rows, "the class token", None
    grid = token_grid(tokens - is_led, size)
    if grid is None:
        return rows, f"token {query}", None
    return rows, "the framed token", (*divmod(int(query) - is_led, grid[1]), *grid)


def query_of(query: str | int | Sequence[int] | None, image: int, images: int) -> str | int | None:
    """Return one image's query."""
    if query is None or isinstance(query, str) or np.ndim(query) == 0:
        return query
    if np.shape(query) != (images,):
        raise ValueError(f"query must hold one token for each of the {images} images: {query!r}.")
    return query[image]


def _attention_panel(
    title: str, keys: np.ndarray, image: np.ndarray, top: float | None = None
) -> Panel:
    values = _grid_of(keys, image)
    return Panel(title, values=values, label="weight", top=top or float(values.max()))


def _grid_of(tokens: np.ndarray, image: np.ndarray) -> np.ndarray:
    return on_grid(tokens[np.newaxis, :, np.newaxis], image.shape[:2])[0, :, :, 0]


# Drawing


def draw(lines: Sequence[Sequence[Panel]], caption: str) -> Figure:
    """Draw lines of panels, those of more than five wrapped, and a caption.

    Everything has its place in inches, so that text has the same size whatever is drawn.

    Args:
        lines: Panels that stand side by side; each image of the same size.
        caption: Paragraphs, one in each line.
    """
    columns = max(len(line) for line in lines)
    columns = math.ceil(columns / math.ceil(columns / MOST_IN_A_LINE))
    lines = [line[at : at + columns] for line in lines for at in range(0, len(line), columns)]
    shape = next(p.image.shape for line in lines for p in line if p.image is not None)
    width = min(LARGEST_PANEL, (WIDTH - GAP * (columns + 1)) / columns)
    height = width * shape[0] / shape[1]
    total = GAP + (width + GAP) * columns
    # 9 points are about 14 letters to an inch, 8 points 17.
    lines = [
        [replace(p, title="\n".join(_wrapped(p.title, 14 * width))) for p in line] for line in lines
    ]
    caption = "\n".join(_wrapped(caption, 17 * total))
    scales = {(p.label, p.top) for line in lines for p in line if p.label}
    has_scale = [len(scales) > 1 and any(p.label for p in line) for line in lines]
    has_scale[-1] = bool(scales)  # one that all share stands at the foot
    above = [TEXT_LINE * (1.8 + max(p.title.count("\n") for p in line)) for line in lines]
    below = [SCALE if scaled else 0.0 for scaled in has_scale]
    foot = TEXT_LINE * (caption.count("\n") + 2)
    figure = new_figure(total, sum(above) + sum(below) + height * len(lines) + foot, layout="none")

    def axes_at(left, bottom, width, height):
        inches = figure.get_size_inches()
        box = [left / inches[0], bottom / inches[1], width / inches[0], height / inches[1]]
        return figure.add_axes(box)

    floor = figure.get_size_inches()[1]
    for line, scaled, over, under in zip(lines, has_scale, above, below, strict=True):
        floor -= over + height
        groups: dict[tuple, list] = {}
        for column, panel in enumerate(line):
            if panel.image is None and panel.values is None:
                continue
            left = GAP + column * (width + GAP)
            drawn = _draw_panel(axes_at(left, floor, width, height), panel, shape)
            if panel.label:
                key = (panel.label, panel.top) if panel.top is not None else (column,)
                groups.setdefault(key, []).append((drawn, left, panel.label))
        for group in groups.values() if scaled else ():
            (drawn, first, label), (_, last, _) = group[0], group[-1]
            middle, length = (first + last + width) / 2, min(0.8 * (last + width - first), 2.0)
            place = axes_at(middle - length / 2, floor - 0.15, length, 0.08)
            bar = figure.colorbar(drawn, cax=place, orientation="horizontal")
            bar.set_ticks([0, drawn.norm.vmax / 2, drawn.norm.vmax])
            bar.ax.set_xticklabels([f"{tick:.2g}" for tick in bar.get_ticks()])
            bar.ax.tick_params(labelsize=8, length=2, pad=2)
            bar.set_label(label, fontsize=8, labelpad=1)
        floor -= under
    figure.text(GAP / total, 0.05 / figure.get_size_inches()[1], caption, fontsize=8, va="bottom")
    return figure


def _wrapped(text: str, letters: float) -> list[str]:
    return [part for line in text.split("\n") for part in textwrap.wrap(line, int(letters))]


def _draw_panel(axes, panel: Panel, shape: Sequence[int]):
    """Draw one panel in the coordinates of an image of ``shape``; returns the AxesImage."""
    height, width = shape[:2]
    extent = (0, width, height, 0)
    if panel.image is None:
        drawn = axes.imshow(
            panel.values,
            cmap=COLOUR_MAP,
            vmin=0,
            vmax=panel.top or 1.0,  # a map of zeros, too, has a scale
            interpolation="nearest",
            extent=extent,
        )
    else:
        pixels = as_bytes(panel.image)
        if panel.values is not None:
            pixels = _seen_through(pixels, panel.values / (panel.top or 1.0))
        drawn = axes.imshow(pixels, extent=extent)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(panel.title.replace("$", r"\$"), fontsize=9, pad=3)
    if panel.mark is not None:
        from matplotlib.patches import Rectangle

        row, column, rows, columns = panel.mark
        cell = (width / columns, height / rows)
        corner = (column * cell[0], row * cell[1])
        # White within black is seen on any ground.
        axes.add_patch(Rectangle(corner, *cell, fill=False, edgecolor="black", linewidth=2.6))
        axes.add_patch(Rectangle(corner, *cell, fill=False, edgecolor="white", linewidth=1.2))
    return drawn


def _seen_through(image: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    rows = np.arange(image.shape[0]) * brightness.shape[0] // image.shape[0]
    columns = np.arange(image.shape[1]) * brightness.shape[1] // image.shape[1]
    factor = _DARKEST + (1 - _DARKEST) * brightness[rows[:, np.newaxis], columns]
    return np.rint(image * np.clip(factor, 0, 1)[..., np.newaxis]).astype("uint8")


def as_bytes(image: np.ndarray) -> np.ndarray:
    """Return uint8 (height, width, 3)."""
    image = np.clip(np.rint(image), 0, 255).astype("uint8")
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
