"""A training or evaluation run as one HTML file that can be mailed, archived and opened anywhere.

The file needs nothing else: style is inline, figures are embedded, and its content security policy
forbids the browser to fetch anything. All text is escaped.
"""

from __future__ import annotations

import base64
import datetime
import html
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import keras
import numpy as np

from keras_hybrid._version import __version__
from keras_hybrid.evaluation.plots import read_history

__all__ = ["environment", "write_report"]

Table: TypeAlias = Mapping[str, object] | Sequence[Mapping[str, object]]

_MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".svg": "image/svg+xml",
}


def environment() -> dict[str, str]:
    """Collect what a reader needs to repeat a run or to judge its speed.

    Returns:
        Versions of this library, Python, Keras, the backend and NumPy; processor, number of
        usable cores, accelerators where the backend lists them, platform, the time (UTC), and the
        command line this process was started with, under ``"command"``.
    """
    backend = keras.backend.backend()
    backend_version = getattr(sys.modules.get(backend), "__version__", "")
    facts = {
        "keras_hybrid": __version__,
        "Python": platform.python_version(),
        "Keras": keras.version(),
        "Backend": f"{backend} {backend_version}".strip(),
        "NumPy": np.__version__,
        "Floating point": keras.config.dtype_policy().name,
        "Processor": _processor(),
        "Cores": str(_cores()),
        "Accelerators": _accelerators(),
        "Platform": platform.platform(),
        "Date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        # Of `python -m package.module`, sys.argv has a file that does not run by itself.
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }
    return {name: value for name, value in facts.items() if value}


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Mapping[str, object],
    history: Mapping[str, Sequence[float]] | str | Path | None = None,
    tables: Mapping[str, Table] | None = None,
    figures: Mapping[str, str | Path] | None = None,
    configuration: Mapping[str, object] | None = None,
    environment: Mapping[str, object] | None = None,
) -> Path:
    """Write a run's report as one self-contained HTML file.

    Args:
        path: File to write; a folder gets a ``report.html``.
        title: The report's title.
        summary: The headline figures, shown as cards: label → value, or label → (value, note).
        history: ``model.fit(...).history`` or the path of a ``keras.callbacks.CSVLogger`` file,
            drawn as curves.
        tables: Caption → table. A table is a sequence of mappings (one per row), a mapping of
            mappings (row name → row), or a plain mapping (name → value). Rows may lack columns.
        figures: Caption → path of a PNG, JPEG or SVG file, which is embedded.
        configuration: Setting → value; nested mappings become dotted names.
        environment: Fact → value; :func:`environment` by default, ``{}`` for none. A fact named
            ``"command"`` is shown as the command line to run again.

    Returns:
        The path of the file written.

    Raises:
        ValueError: If a figure is of an unknown kind, a table has no known form, or the history
            holds no curves.
        FileNotFoundError: If a figure does not exist.

    Example:
        >>> write_report(
        ...     "report.html",
        ...     title="FaceRec on 306 identities",
        ...     summary={"LFW": ("91.0 ± 1.2 %", "View 2, flipped"), "Parameters": 1_940_000},
        ...     history=history.history,
        ...     tables={"LFW View 2": {"FaceRec": {"AUC": result.auc, "EER": result.eer}}},
        ...     figures={"ROC": plot_roc({"FaceRec": result}, "roc.png")},
        ... )  # doctest: +SKIP
    """
    facts = dict(_collect_environment() if environment is None else environment)
    command = facts.pop("command", None)
    sections = []
    if summary:
        sections.append(_cards(summary))
    if history is not None:
        sections.append(_section("Training", _curves(history)))
    for caption, table in (tables or {}).items():
        sections.append(_section(caption, _table(caption, table)))
    if figures:
        sections.append(_section("Figures", _figures(figures)))
    if configuration:
        sections.append(_section("Configuration", _pairs_table(_flatten(configuration))))
    if command:
        sections.append(_section("To run this again", f"<pre>{_escape(command)}</pre>"))
    if facts:
        sections.append(_section("Environment", _pairs_table(facts)))

    date = f"<p class='date'>{_escape(facts['Date'])}</p>" if facts.get("Date") else ""
    document = _DOCUMENT.format(
        title=_escape(title), style=_STYLE, date=date, body="\n".join(sections)
    )
    path = Path(path)
    if path.is_dir():
        path = path / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A class named by a folder whose name is not UTF-8 is shown with escapes.
    path.write_text(document, encoding="utf-8", errors="backslashreplace")
    return path


_collect_environment = environment  # write_report has an argument of that name


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Hardware") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _accelerators() -> str:
    """Name the accelerators; empty where there are none or the backend cannot list them."""
    try:
        devices = keras.distribution.list_devices()
    except (AttributeError, NotImplementedError, RuntimeError):
        return ""
    return ", ".join(device for device in devices if not device.lower().startswith("cpu"))


def _escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def _format(value: object) -> str:
    """Return a value as people write it: four digits, thousands apart, a dash for nothing."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_format(item)}" for name, item in value.items())
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        return ", ".join(_format(item) for item in value)
    return str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{_escape(heading)}</h2>\n{content}</section>"


def _cards(summary: Mapping[str, object]) -> str:
    cards = []
    for label, value in summary.items():
        note = ""
        if isinstance(value, tuple) and len(value) == 2:
            value, note = value
        cards.append(
            f"<div class='card'><div class='label'>{_escape(label)}</div>"
            f"<div class='value'>{_escape(_format(value))}</div>"
            + (f"<div class='note'>{_escape(note)}</div>" if note else "")
            + "</div>"
        )
    return "<div class='cards'>" + "\n".join(cards) + "</div>"


def _cell(value: object) -> str:
    number = " class='number'" if _is_number(value) else ""
    return f"<td{number}>{_escape(_format(value))}</td>"


def _pairs_table(values: Mapping[str, object]) -> str:
    rows = "\n".join(
        f"<tr><th scope='row'>{_escape(name)}</th>{_cell(value)}</tr>"
        for name, value in values.items()
    )
    return f"<div class='scroll'><table class='pairs'><tbody>{rows}</tbody></table></div>"


def _table(caption: str, table: Table) -> str:
    if isinstance(table, Mapping):
        if not table or not all(isinstance(row, Mapping) for row in table.values()):
            return _pairs_table(table)
        named_rows = list(table.items())
    elif isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
        named_rows = [(None, row) for row in table]
    else:
        raise ValueError(
            f"Table {caption!r} must be a mapping, a mapping of mappings or a sequence of "
            f"mappings, got {type(table).__name__}."
        )
    columns = list(dict.fromkeys(name for _, row in named_rows for name in row))
    named = isinstance(table, Mapping)
    numeric = {
        name for name in columns if all(_is_number(row.get(name, 0)) for _, row in named_rows)
    }
    head = ("<td></td>" if named else "") + "".join(
        f"<th scope='col'{' class=number' if name in numeric else ''}>{_escape(name)}</th>"
        for name in columns
    )
    body = "\n".join(
        "<tr>"
        + (f"<th scope='row'>{_escape(row_name)}</th>" if named else "")
        + "".join(_cell(row.get(name)) for name in columns)
        + "</tr>"
        for row_name, row in named_rows
    )
    return (
        f"<div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _figures(figures: Mapping[str, str | Path]) -> str:
    parts = []
    for caption, figure in figures.items():
        figure = Path(figure)
        media_type = _MEDIA_TYPES.get(figure.suffix.lower())
        if media_type is None:
            raise ValueError(
                f"Figure {str(figure)!r} must be one of {', '.join(_MEDIA_TYPES)} to be embedded."
            )
        data = base64.b64encode(figure.read_bytes()).decode("ascii")
        parts.append(
            f"<figure><img alt='{_escape(caption)}' src='data:{media_type};base64,{data}'>"
            f"<figcaption>{_escape(caption)}</figcaption></figure>"
        )
    return "<div class='figures'>" + "\n".join(parts) + "</div>"


def _curves(history: Mapping[str, Sequence[float]] | str | Path) -> str:
    epochs, panels = read_history(history)
    charts = [_chart(title, epochs, curves) for title, curves in panels.items()]
    return "<div class='charts'>" + "\n".join(charts) + "</div>"


def _chart(title: str, epochs: np.ndarray, curves: Mapping[str, np.ndarray]) -> str:
    """Draw one quantity's curves as an SVG whose colours follow the page's theme."""
    width, height, left, right, top, bottom = 360, 220, 52, 12, 10, 34
    values = np.concatenate(list(curves.values()))
    finite = values[np.isfinite(values)]
    ticks = _ticks(float(finite.min()), float(finite.max()))
    low, high = min(ticks[0], finite.min()), max(ticks[-1], finite.max())
    first, last = float(epochs[0]), float(epochs[-1])

    def x_of(epoch: float) -> float:
        return left + (width - left - right) * (epoch - first) / ((last - first) or 1)

    def y_of(value: float) -> float:
        return height - bottom - (height - top - bottom) * (value - low) / ((high - low) or 1)

    parts = []
    for tick in ticks:
        y = y_of(tick)
        parts.append(
            f"<line class='grid' x1='{left}' x2='{width - right}' y1='{y:.1f}' y2='{y:.1f}'/>"
            f"<text x='{left - 6}' y='{y + 4:.1f}' text-anchor='end'>{tick:.4g}</text>"
        )
    for epoch in sorted({first, float(epochs[len(epochs) // 2]), last}):
        anchor = "middle" if first < epoch < last or first == last else "end"
        anchor = "start" if epoch == first < last else anchor
        parts.append(
            f"<text x='{x_of(epoch):.1f}' y='{height - bottom + 16}' "
            f"text-anchor='{anchor}'>{epoch:.4g}</text>"
        )
    parts.append(
        f"<text x='{(left + width - right) / 2:.0f}' y='{height - 3}' "
        "text-anchor='middle'>epoch</text>"
    )
    for name, curve in curves.items():
        points = [
            (x_of(float(epoch)), y_of(float(value)))
            for epoch, value in zip(epochs, curve, strict=True)
            if math.isfinite(value)
        ]
        if len(points) > 1:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f"<polyline class='{name}' points='{line}'/>")
        parts += [
            f"<circle class='{name}' cx='{x:.1f}' cy='{y:.1f}' r='2.5'/>" for x, y in points[-1:]
        ]
    logged = {
        name: values[-1]
        for name, curve in curves.items()
        if len(values := curve[np.isfinite(curve)])
    }
    legend = " ".join(
        f"<span class='key {name}'>{name} <b>{_escape(_format(float(value)))}</b></span>"
        for name, value in logged.items()
    )
    shown = _escape(title.replace("_", " "))
    return (
        f"<figure class='chart'><figcaption><strong>{shown}</strong> {legend}</figcaption>"
        f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{shown} by epoch'>"
        + "".join(parts)
        + "</svg></figure>"
    )


def _ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Return round numbers that span a range."""
    if low == high:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / at_most))
    step *= next(
        factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= at_most
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


_STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --plate: #f4f6f8; --ink: #1b1f24; --soft: #5b6570; --line: #d9dee4;
  --one: #0072b2; --two: #d55e00; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171b; --plate: #1e2329; --ink: #e6e9ed; --soft: #9aa5b1; --line: #343b44;
  --one: #56b4e9; --two: #e69f00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
.date { color: var(--soft); margin: .3rem 0 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem;
  margin-top: 1.5rem; }
.card { background: var(--plate); border-radius: .6rem; padding: .9rem 1rem; }
.label { color: var(--soft); font-size: .85rem; }
.value { font-size: 1.5rem; font-weight: 650; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: .85rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1.2rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr));
  gap: 1.2rem; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; background: #ffffff;
  border-radius: .4rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
.chart { max-width: 36rem; }
.chart figcaption { margin: 0 0 .3rem; }
.chart strong { color: var(--ink); margin-right: .6rem; }
.chart svg { display: block; width: 100%; height: auto; background: var(--plate);
  border-radius: .4rem; }
.chart text { font-size: 11px; fill: var(--soft); }
.chart .grid { stroke: var(--line); stroke-width: 1; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
polyline.training { stroke: var(--one); }
polyline.validation { stroke: var(--two); stroke-dasharray: 6 3; }
circle.training { fill: var(--one); }
circle.validation { fill: var(--two); }
.key { margin-right: .6rem; white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: 1.1rem; margin-right: .3rem;
  vertical-align: middle; border-top: 3px solid var(--one); }
.key.validation::before { border-top: 3px dashed var(--two); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; }
.pairs th { color: var(--soft); font-weight: 500; padding-right: 1.6rem; white-space: nowrap; }
.pairs td { overflow-wrap: anywhere; }
table:not(.pairs) .number { text-align: right; }
pre { background: var(--plate); border-radius: .4rem; padding: .8rem 1rem; overflow-x: auto;
  font: .88rem/1.5 ui-monospace, Menlo, Consolas, monospace; }
@media print { body { max-width: none; padding: 0; } section { break-inside: avoid; } }
"""

_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'">
<meta name="generator" content="keras_hybrid">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1>{date}</header>
{body}
</body>
</html>
"""
