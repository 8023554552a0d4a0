"""Figures of verification, training and confusion, for screen and print.

Every function writes one file, in the format its suffix names (png, svg, pdf; png without one), and
returns its path. Colours are Okabe and Ito's, which colour-blind readers can tell apart; curves
also differ in line style, for grey prints. No figure touches matplotlib's global state.
"""

from __future__ import annotations

import csv
import itertools
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_hybrid.evaluation.classification import ClassificationResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from keras_hybrid.evaluation.verification import RocCurve, VerificationResult

__all__ = [
    "plot_confusion",
    "plot_histories",
    "plot_history",
    "plot_roc",
    "plot_roc_over_training",
    "plot_scores",
    "read_history",
]

_LOGGER = logging.getLogger(__name__)
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#6E6E6E"
_PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_LINE_STYLES = ("-", "--", "-.", ":")
# For Chinese, Japanese, Korean and the scripts of India, by the names of Linux, macOS and Windows.
_MORE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Noto Sans Devanagari"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Devanagari Sangam MN"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "Arial Unicode MS"),
)
_MOST_STAGES = 8  # more curves cannot be told apart


def plot_roc(results: Mapping[str, VerificationResult], path: str | Path) -> Path:
    """Draw the ROC curves of one or more models, the false accept rate on a logarithmic axis.

    The curves are the exact steps. Left of one over the number of different-person pairs, the
    smallest false accept rate the pairs can show, runs the rate without any false accept.

    Args:
        results: Results by the name to show in the legend.
        path: File to write.

    Raises:
        ValueError: If there are no results.
        ImportError: If matplotlib is missing.
    """
    if not results:
        raise ValueError("results is empty: there is nothing to plot.")
    figure = new_figure(6.4, 4.6)
    colours = [_PALETTE[index % len(_PALETTE)] for index in range(len(results))]
    axes = _draw_roc(figure, {name: result.roc for name, result in results.items()}, colours)
    axes.legend(loc="lower right", frameon=True, framealpha=0.9)
    return save_figure(figure, path)


def plot_roc_over_training(curves: Mapping[int, RocCurve], path: str | Path) -> Path:
    """Draw the ROC curves of one model after several epochs, from light to dark.

    The axes are those of :func:`plot_roc`. Of more than eight stages eight are drawn, evenly
    spread, the first and the last among them.

    Args:
        curves: Curves by the number of finished epochs.
        path: File to write.

    Raises:
        ValueError: If there are no curves.
        ImportError: If matplotlib is missing.
    """
    if not curves:
        raise ValueError("curves is empty: there is nothing to plot.")
    figure = new_figure(6.4, 4.6)
    from matplotlib import colormaps

    epochs = sorted(curves)
    shown = np.linspace(0, len(epochs) - 1, min(len(epochs), _MOST_STAGES)).round().astype(int)
    shares = np.linspace(0.85, 0, len(shown)) if len(shown) > 1 else [0.0]
    stages = {f"epoch {epochs[index]}": curves[epochs[index]] for index in shown}
    _draw_roc(figure, stages, [colormaps["viridis"](share) for share in shares])
    # Beside the axes: early and late curves together leave no free corner.
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, handlelength=3.2)
    return save_figure(figure, path)


def _draw_roc(figure: Figure, curves: Mapping[str, RocCurve], colours: Sequence[Any]) -> Axes:
    axes = figure.add_subplot()
    smallest = min(1 / roc.num_different for roc in curves.values())
    left = 10 ** math.floor(math.log10(smallest) - 1e-9)
    lowest = 1.0
    for index, (name, roc) in enumerate(curves.items()):
        seen = roc.far > 0
        far = np.concatenate([[left], roc.far[seen]])
        tar = np.concatenate([[roc.tar_at(0.0)], roc.tar[seen]])
        lowest = min(lowest, tar[0])
        axes.step(
            far,
            tar,
            where="post",
            color=colours[index],
            linestyle=_LINE_STYLES[index % len(_LINE_STYLES)],
            linewidth=1.8,
            label=f"{name}  (AUC {roc.auc:.4f})",
        )
    if lowest < 0.5:
        chance = np.geomspace(left, 1, 200)
        axes.plot(chance, chance, color=GREY, linewidth=0.8, linestyle=(0, (1, 3)), label="chance")
    axes.set_xscale("log")
    axes.set_xlim(left, 1)
    span = min(1.0, max(0.02, 1.3 * (1 - lowest)))
    axes.set_ylim(1 - span, 1 + 0.01 * span)
    axes.set_xlabel("False accept rate")
    axes.set_ylabel("True accept rate")
    axes.grid(which="major", alpha=0.35)
    axes.grid(which="minor", axis="x", alpha=0.12)
    return axes


def plot_scores(result: VerificationResult, path: str | Path) -> Path:
    """Draw the scores of same- and different-person pairs, and the threshold between them.

    Args:
        result: A verification result.
        path: File to write.

    Raises:
        ImportError: If matplotlib is missing.
    """
    figure = new_figure(6.4, 3.8)
    axes = figure.add_subplot()
    scores, same = result.scores, result.same
    edges = np.linspace(scores.min(), scores.max() + 1e-9, 61)
    for kind, name, color, hatch in (
        (~same, "different people", VERMILION, None),
        (same, "same person", BLUE, "////"),
    ):
        shares = np.histogram(scores[kind], edges)[0] / kind.sum()
        axes.stairs(
            shares,
            edges,
            fill=True,
            facecolor=(color, 0.28),
            edgecolor=color,
            hatch=hatch,
            linewidth=1.5,
            label=f"{name} ({kind.sum():,} pairs)",
        )
    axes.axvline(
        result.threshold,
        color=BLACK,
        linewidth=1.4,
        linestyle="--",
        label=f"threshold {result.threshold:.3f}",
    )
    axes.set_xlabel("Score (cosine similarity)")
    axes.set_ylabel("Share of pairs per bin")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return save_figure(figure, path)


def plot_history(
    history: Mapping[str, Sequence[float]] | str | Path,
    path: str | Path,
) -> Path:
    """Draw the curves of a training run: one panel per quantity, validation beside training.

    Args:
        history: ``model.fit(...).history``, or the path of a ``keras.callbacks.CSVLogger`` file.
            ``val_x`` shares the panel of ``x``; ``epoch`` is the horizontal axis where present.
            Curves are as long as the longest, None where nothing was logged; a shorter one is
            taken for what ``validation_freq`` leaves if one frequency gives its length.
        path: File to write.

    Raises:
        ValueError: If there are no curves, or the epochs of a shorter one cannot be told.
        ImportError: If matplotlib is missing.
    """
    epochs, panels = read_history(history)
    columns = min(len(panels), 2)  # as wide as a printed page
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(2.4 + 2.0 * columns, 0.5 + 2.4 * rows)
    for index, (title, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        for name, values in curves.items():
            validation = name == "validation"
            _draw_curve(
                axes,
                epochs,
                values,
                color=VERMILION if validation else BLUE,
                linestyle="--" if validation else "-",
                label=name,
            )
        axes.set_title(title.replace("_", " "))
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(frameon=True, framealpha=0.9)
    return save_figure(figure, path)


def plot_histories(
    histories: Mapping[str, Mapping[str, Sequence[float]] | str | Path],
    path: str | Path,
    quantities: Sequence[str] = ("loss", "accuracy"),
) -> Path:
    """Draw the curves of several training runs, a line for each run.

    A row of panels for each quantity: training, and validation beside it where a run has any, on
    one scale; two quantities share a row where none has any. Where positive values lie more than a
    factor of 100 apart, as when a run diverges, each panel has its own, logarithmic where they do
    so within it.

    Args:
        histories: Histories, as :func:`plot_history` takes one, by the names in the legend.
        path: File to write.
        quantities: Names of logs, without ``val_``.

    Raises:
        ValueError: If there are no histories or quantities, a history is broken, or a run has not
            logged a quantity.
        ImportError: If matplotlib is missing.
    """
    if not histories or not quantities:
        raise ValueError("histories and quantities must not be empty: there is nothing to plot.")
    runs = {name: read_history(history) for name, history in histories.items()}
    for name, (_, panels) in runs.items():
        lacking = [quantity for quantity in quantities if quantity not in panels]
        if lacking:
            raise ValueError(
                f"The run {name!r} has not logged {', '.join(lacking)}; it has {', '.join(panels)}."
            )
    # A quantity without validation, such as the learning rate, has one panel.
    kinds = {
        quantity: [
            kind
            for kind in ("training", "validation")
            if any(kind in panels[quantity] for _, panels in runs.values())
        ]
        for quantity in quantities
    }
    figure, panels_of = _panels({name: len(found) for name, found in kinds.items()}, len(runs))
    lines = {}
    for quantity, row in panels_of.items():
        for kind, axes in zip(kinds[quantity], row, strict=True):
            for index, (name, (epochs, panels)) in enumerate(runs.items()):
                if kind in panels[quantity]:
                    lines[name] = _draw_curve(
                        axes,
                        epochs,
                        panels[quantity][kind],
                        color=_PALETTE[index % len(_PALETTE)],
                        linestyle=_LINE_STYLES[index % len(_LINE_STYLES)],
                    )
            title = quantity.replace("_", " ")
            axes.set_title(f"{title}, {kind}" if len(kinds[quantity]) > 1 else title, fontsize=10)
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
        _scale([axes for axes in row if axes.lines])
    # Dollar signs would start matplotlib's mathematics.
    figure.legend(
        lines.values(),
        [name.replace("$", r"\$") for name in lines],
        loc="outside lower center",
        ncols=2 if len(runs) > 3 else 1,
        frameon=False,
        fontsize=9,
        handlelength=3.2,
    )
    return save_figure(figure, path)


def _panels(counts: Mapping[str, int], runs: int) -> tuple[Figure, dict[str, list[Axes]]]:
    """Return a figure with so many panels for each quantity, and room for the runs' legend."""
    if max(counts.values()) == 1:  # two to a row
        rows = [list(counts)[at : at + 2] for at in range(0, len(counts), 2)]
    else:
        rows = [[name] * count for name, count in counts.items()]
    figure = new_figure(6.4, 0.6 + 2.3 * len(rows) + 0.18 * runs)
    columns = max(map(len, rows))
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex="row")
    panels: dict[str, list[Axes]] = {}
    for names, row in zip(rows, grid, strict=True):
        for name, axes in itertools.zip_longest(names, row):
            if name is None:
                axes.remove()
            else:
                panels.setdefault(name, []).append(axes)
    return figure, panels


def _draw_curve(axes: Axes, epochs: np.ndarray, values: np.ndarray, **style: Any) -> Line2D:
    """Draw what is known of a curve; epochs without a validation leave no gap in it."""
    known = np.isfinite(values)
    marker = "o" if known.sum() == 1 else None
    (line,) = axes.plot(epochs[known], values[known], marker=marker, linewidth=1.7, **style)
    return line


def _scale(panels: list[Axes]) -> None:
    """Give a row of panels one scale; logarithmic ones of their own where that shows nothing."""
    if _far_apart(panels):
        for axes in panels:
            if _far_apart([axes]):
                axes.set_yscale("log")
        return
    limits = [limit for axes in panels for limit in axes.get_ylim()]
    for axes in panels:
        axes.set_ylim(min(limits), max(limits))
        axes.tick_params(labelleft=axes is panels[0])


def _far_apart(panels: list[Axes]) -> bool:
    values = np.concatenate([line.get_ydata() for axes in panels for line in axes.lines])
    return bool(values.size and values.min() > 0 and values.max() > 100 * values.min())


def plot_confusion(
    result: ClassificationResult | np.ndarray,
    path: str | Path,
    class_names: Sequence[str] | None = None,
    normalize: bool = True,
) -> Path:
    """Draw a confusion matrix: rows the true classes, columns the predicted ones.

    Up to 20 classes are written out with their numbers, up to 40 with their names; a larger
    matrix shows its pattern only. Up to 10 fit a printed page at their size.

    Args:
        result: A classification result, or counts (classes, classes).
        path: File to write.
        class_names: The classes' names; the result's own by default.
        normalize: Whether to show shares of each true class rather than counts.

    Raises:
        ValueError: If the matrix is not square or the names do not fit it.
        ImportError: If matplotlib is missing.
    """
    if isinstance(result, ClassificationResult):
        matrix = result.confusion_matrix
        names = result.class_names if class_names is None else tuple(class_names)
    else:
        matrix = np.asarray(result)
        names = tuple(range(len(matrix))) if class_names is None else tuple(class_names)
    if matrix.ndim != 2 or matrix.shape != (len(names), len(names)):
        raise ValueError(
            f"The confusion matrix must be square and fit its class names: got {matrix.shape} "
            f"and {len(names)} names."
        )
    classes = len(names)
    shown = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1) if normalize else matrix
    side = min(max(3.6, 1.4 + 0.42 * classes), 9.0)
    figure = new_figure(side + 0.9, side, layout="compressed")
    axes = figure.add_subplot()
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1 if normalize else max(shown.max(), 1))
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the true class" if normalize else "images")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if classes <= 40:
        size = 9 if classes <= 20 else 6
        # Dollar signs would start matplotlib's mathematics, and it draws no broken UTF-8.
        drawn = (str(name).replace("$", r"\$") for name in names)
        labels = [name.encode(errors="backslashreplace").decode() for name in drawn]
        axes.set_xticks(range(classes), labels, rotation=90 if classes > 8 else 45, fontsize=size)
        axes.set_yticks(range(classes), labels, fontsize=size)
        if classes <= 8:
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
    if classes <= 20:
        middle = (1 if normalize else max(shown.max(), 1)) / 2
        for (row, column), value in np.ndenumerate(shown):
            if matrix[row, column]:
                axes.text(
                    column,
                    row,
                    _short_share(value) if normalize else f"{value}",
                    ha="center",
                    va="center",
                    fontsize=8 if classes <= 10 else 6.5,
                    color="white" if value > middle else "black",
                )
    return save_figure(figure, path)


def read_history(
    history: Mapping[str, Sequence[float]] | str | Path,
) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """Sort the curves of a training run into panels.

    Args:
        history: As :func:`plot_history`.

    Returns:
        The epochs, counted from 1, float64 (epochs,); and for each quantity its curves
        ``"training"`` and ``"validation"``, as far as there are both, float64 (epochs,), NaN
        where nothing was logged. Losses come first and the learning rate last.

    Raises:
        ValueError: If there are no curves, a file is no table, a column of numbers holds
            something else, or a curve is too short to tell its epochs.
    """
    is_file = isinstance(history, str | Path)
    table = _read_csv(Path(history)) if is_file else history
    source = str(history) if is_file else "The history"
    columns = {}
    for name, values in table.items():
        numbers = [_number(value) for value in values]
        if not any(number is not None and math.isfinite(number) for number in numbers):
            continue
        if None in numbers:
            raise ValueError(
                f"{source}: {values[numbers.index(None)]!r} in the column {name!r} is no number."
            )
        columns[name] = np.array(numbers, "float64")
    epochs = columns.pop("epoch", None)
    if not columns:
        raise ValueError(f"{source} holds no curves.")
    longest = max(len(values) for values in columns.values())
    if epochs is None or len(epochs) < longest or not np.isfinite(epochs).all():
        epochs = np.arange(1, longest + 1, dtype="float64")
    elif epochs.min() < 1:  # Keras counts from 0
        epochs = epochs + 1
    columns = {name: _by_epoch(name, values, epochs, source) for name, values in columns.items()}
    panels: dict[str, dict[str, np.ndarray]] = {}
    for name, values in columns.items():
        base = name.removeprefix("val_")
        curve = "validation" if name != base else "training"
        panels.setdefault(base, {})[curve] = values
    order = sorted(
        panels,
        key=lambda name: (name in ("learning_rate", "lr"), name != "loss", "loss" not in name),
    )
    return epochs, {name: dict(sorted(panels[name].items())) for name in order}


def _by_epoch(name: str, values: np.ndarray, epochs: np.ndarray, source: str) -> np.ndarray:
    """Return a curve with NaN at the epochs that ``fit(validation_freq=...)`` left out."""
    if len(values) == len(epochs):
        return values
    count = len(epochs)
    fitting = [every for every in range(2, count + 1) if count // every == len(values)]
    # Keras counts a frequency from the first epoch of all, which a continued run lacks.
    if len(fitting) != 1 or epochs[0] != 1:
        raise ValueError(
            f"{source}: the curve {name!r} has {len(values)} values for {count} epochs, and "
            "which these are cannot be told: pad with None where nothing was logged."
        )
    placed = np.full(count, np.nan)
    placed[fitting[0] - 1 :: fitting[0]] = values
    return placed


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    names, *rows = rows or [[]]
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise ValueError(
                f"{path}, line {number}: expected {len(names)} values, got {len(row)}."
            )
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def _number(value: Any) -> float | None:
    """Return a logged value, NaN where there is none, None for what is no number."""
    if value is None or value in ("", "NA"):  # CSVLogger writes NA
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _short_share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """Return an empty figure that is not matplotlib's current one.

    Args:
        width: In inches.
        height: In inches.
        layout: As of ``matplotlib.figure.Figure``.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'keras-hybrid[plot]'.") from error
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure in the format that the path's suffix names, png without one.

    Returns:
        The path of the file written.
    """
    path = Path(path)
    if not path.suffix:  # which matplotlib would add to the file, but not to our path
        path = path.with_name(f"{path.name}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    _add_fonts(figure)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, dpi=160)
    missing = [warning for warning in caught if "missing from font" in str(warning.message)]
    if missing:  # once, not for every letter
        _LOGGER.warning(
            "%s: no font of this system has %d of its letters, drawn as boxes; install one that "
            "does, such as Noto Sans CJK.",
            path,
            len({str(warning.message) for warning in missing}),
        )
    for warning in caught:
        if warning not in missing:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return path


def _add_fonts(figure: Figure) -> None:
    """Let names be drawn in letters that matplotlib's own font lacks, as far as there are fonts."""
    from matplotlib.font_manager import get_font_names
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    if texts:
        installed = set(get_font_names())
        fonts = [name for name in _MORE_FONTS if name in installed]
        for text in texts:
            text.set_fontfamily([*text.get_fontfamily(), *fonts])
