"""Closed-set classification and identification: which of the known classes, which known person?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from keras_hybrid.evaluation.inference import predict_batches

if TYPE_CHECKING:
    import keras
    from numpy.typing import ArrayLike

__all__ = [
    "ClassMetrics",
    "ClassificationResult",
    "Confusion",
    "IdentificationResult",
    "classification_report",
    "evaluate_classifier",
    "identify",
]

_ROWS_AT_ONCE = 64
_SCORES_AT_ONCE = 2**24
_ROUNDING = 1e-12  # equal embeddings may score this far apart, depending on where they stand


@dataclass(frozen=True)
class ClassMetrics:
    """One class's figures.

    Attributes:
        name: The class's name.
        precision: Share of the images given this class that belong to it; None if no image was
            given this class and none belongs to it, 0 if none was given it though some belong.
        recall: Share of the class's images that were found; None if it has no images.
        f1: Harmonic mean of the two; None if the class has no images.
        support: Number of the class's images.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Confusion:
    """One kind of mistake: images of class ``true`` taken for class ``predicted``.

    Attributes:
        true: Name of the images' class.
        predicted: Name of the class they were given.
        count: How many.
        share: How many of the true class's images, in (0, 1].
    """

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """What a classifier got right and wrong. All rates are shares in [0, 1].

    Macro averages are over the classes that have images, each counting the same; weighted ones
    count a class by its images. They are scikit-learn's with ``labels`` set to those classes.

    Attributes:
        top_k: Share of images whose class is among the k highest scores, for each k.
        precision_macro: Macro-averaged precision.
        recall_macro: Macro-averaged recall, also called balanced accuracy.
        f1_macro: Macro-averaged F1.
        precision_weighted: Precision averaged by support.
        recall_weighted: Recall averaged by support; equals top-1.
        f1_weighted: F1 averaged by support.
        per_class: Each class's figures, in class order.
        confusions: The entries of the confusion matrix that are not 0, row by row, int64
            (entries, 3): the true class, the predicted one, the number of images. Unlike the
            matrix, it does not grow with the square of the classes.
        class_names: The classes' names, in order.
    """

    top_k: dict[int, float]
    precision_macro: float
    recall_macro: float
    f1_macro: float
    precision_weighted: float
    recall_weighted: float
    f1_weighted: float
    per_class: tuple[ClassMetrics, ...] = field(repr=False)
    confusions: np.ndarray = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)

    @functools.cached_property
    def confusion_matrix(self) -> np.ndarray:
        """Counts, int64 (classes, classes): row the true class, column the predicted one.

        It is made when it is first asked for: 85,742 identities would take 55 GiB.
        """
        true, predicted, counts = self.confusions.T
        matrix = np.zeros((len(self.class_names),) * 2, "int64")
        matrix[true, predicted] = counts
        matrix.setflags(write=False)
        return matrix

    @property
    def top1(self) -> float:
        """Share of images whose class has the highest score."""
        true, predicted, counts = self.confusions.T
        return float(counts[true == predicted].sum() / counts.sum())

    @property
    def top5(self) -> float:
        """Share of images whose class is among the five highest scores.

        Raises:
            ValueError: If the report was made without 5 in ``top_k``.
        """
        if 5 not in self.top_k:
            raise ValueError(f"The report was made with top_k={tuple(self.top_k)}, without 5.")
        return self.top_k[5]

    @property
    def _images(self) -> int:
        return int(self.confusions[:, 2].sum())

    def most_confused(self, n: int = 10) -> list[Confusion]:
        """Return the ``n`` most frequent mistakes, most frequent first, then in class order."""
        true, predicted, _ = self.confusions.T
        mistakes = self.confusions[true != predicted]
        order = np.argsort(-mistakes[:, 2], kind="stable")[: max(n, 0)]
        return [
            Confusion(
                true=self.class_names[true],
                predicted=self.class_names[predicted],
                count=count,
                share=count / self.per_class[true].support,
            )
            for true, predicted, count in mistakes[order].tolist()
        ]

    def to_dict(self) -> dict[str, object]:
        """Return the averages as plain Python numbers, ready for JSON."""
        return {
            **{f"top{k}": rate for k, rate in self.top_k.items()},
            "precision_macro": self.precision_macro,
            "recall_macro": self.recall_macro,
            "f1_macro": self.f1_macro,
            "precision_weighted": self.precision_weighted,
            "recall_weighted": self.recall_weighted,
            "f1_weighted": self.f1_weighted,
            "images": self._images,
            "classes": len(self.class_names),
        }

    def __str__(self) -> str:
        """Return the averages in a few lines."""
        lines = [(f"top-{k}", f"{100 * rate:.2f} %") for k, rate in self.top_k.items()]
        lines += [
            (
                f"{name} (macro, weighted)",
                f"{100 * getattr(self, f'{key}_macro'):.2f} %, "
                f"{100 * getattr(self, f'{key}_weighted'):.2f} %",
            )
            for name, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1"))
        ]
        lines.append(("images", f"{self._images:,} of {len(self.class_names):,} classes"))
        return "\n".join(f"{name:<28} {value}" for name, value in lines)


@dataclass(frozen=True, eq=False)
class IdentificationResult:
    """How high people came in the lists of their look-alikes.

    Attributes:
        rates: Share of probes whose person is among the first k of the gallery, for each rank k.
        probe_ranks: The rank of each probe's own person, int64 (probes,), from 1.
    """

    rates: dict[int, float]
    probe_ranks: np.ndarray = field(repr=False)

    def rate(self, rank: int) -> float:
        """Return the share of probes whose person is among the first ``rank`` of the gallery."""
        return float(np.mean(self.probe_ranks <= rank))

    def to_dict(self) -> dict[str, object]:
        """Return the rates as plain Python numbers, ready for JSON."""
        return {
            **{f"rank{rank}": rate for rank, rate in self.rates.items()},
            "probes": len(self.probe_ranks),
        }

    def __str__(self) -> str:
        """Return the rates in one line."""
        rates = ", ".join(f"rank-{rank} {100 * rate:.2f} %" for rank, rate in self.rates.items())
        return f"{rates} ({len(self.probe_ranks):,} probes)"


def classification_report(
    y_true: ArrayLike,
    scores: ArrayLike,
    class_names: Sequence[str] | None = None,
    top_k: Sequence[int] = (1, 5),
) -> ClassificationResult:
    """Judge a classifier by its scores.

    Where scores tie, the lower class id comes first, as ``numpy.argmax`` and Keras's accuracies
    have it: a model that scores all classes alike is right on class 0 only.

    Args:
        y_true: Integer class ids (n,) in [0, classes), or one-hot (n, classes).
        scores: Floats (n, classes), higher for likelier: probabilities, logits or cosines.
        class_names: The classes' names, in order; "0", "1", … by default.
        top_k: Which top-k rates to compute. One with k ≥ classes is 1 by definition.

    Returns:
        Rates, averages, the per-class table and the confusions.

    Raises:
        ValueError: If shapes disagree, there are no images, a score is NaN, or a class id or a k
            is out of range.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must have shape (n, classes), not empty; got {scores.shape}.")
    starts = range(0, len(scores), _ROWS_AT_ONCE)
    blocks = (scores[start : start + _ROWS_AT_ONCE] for start in starts)
    return _report(y_true, len(scores), blocks, class_names, top_k)


def _report(
    y_true: ArrayLike,
    count: int,
    blocks: Iterable[np.ndarray],
    class_names: Sequence[str] | None,
    top_k: Sequence[int],
) -> ClassificationResult:
    """Judge a classifier by its scores, of which one block is in memory at a time."""
    if not top_k or min(top_k) < 1:
        raise ValueError(f"top_k must hold integers of at least 1, got {top_k!r}.")
    found, names, start = [], None, 0
    for scores in blocks:
        if scores.ndim != 2:
            raise ValueError(f"scores must have shape (n, classes); got {scores.shape}.")
        if names is None:
            classes = scores.shape[1]
            y_true, names = _class_ids(y_true, count, classes), _class_names(class_names, classes)
        found.append(_predicted_and_places(scores, y_true[start : start + len(scores)]))
        start += len(scores)
    predicted, places = np.concatenate(found, axis=1)
    hits, support, given = (
        np.bincount(ids, minlength=classes)
        for ids in (y_true[y_true == predicted], y_true, predicted)
    )
    kinds, counts = np.unique(y_true * classes + predicted, return_counts=True)
    confusions = np.stack([*np.divmod(kinds, classes), counts], axis=1).astype("int64")
    confusions.setflags(write=False)
    precision = hits / np.maximum(given, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + given, 1)
    present = support > 0

    def macro(values: np.ndarray) -> float:
        return float(values[present].mean())

    def weighted(values: np.ndarray) -> float:
        return float(np.average(values, weights=support))

    return ClassificationResult(
        top_k={int(k): float(np.mean(places < k)) for k in top_k},
        precision_macro=macro(precision),
        recall_macro=macro(recall),
        f1_macro=macro(f1),
        precision_weighted=weighted(precision),
        recall_weighted=weighted(recall),
        f1_weighted=weighted(f1),
        per_class=tuple(
            ClassMetrics(
                name=names[index],
                precision=float(precision[index]) if present[index] or given[index] else None,
                recall=float(recall[index]) if present[index] else None,
                f1=float(f1[index]) if present[index] else None,
                support=int(support[index]),
            )
            for index in range(classes)
        ),
        confusions=confusions,
        class_names=names,
    )


def evaluate_classifier(
    model: keras.Model | Callable[[np.ndarray], object],
    images: ArrayLike,
    labels: ArrayLike,
    flip: bool = False,
    batch_size: int = 64,
    *,
    class_names: Sequence[str] | None = None,
    top_k: Sequence[int] = (1, 5),
    landmarks: ArrayLike | None = None,
) -> ClassificationResult:
    """Judge a classifier on images.

    Args:
        model: Keras model or callable from float32 (batch, height, width, channels) to scores
            (batch, classes).
        images: (n, height, width, channels), values in [0, 255] unless the model was built with
            ``include_preprocessing=False``.
        labels: Integer class ids (n,), or one-hot (n, classes).
        flip: Whether to average the scores for each image and its left-right mirror image.
        batch_size: Images per step.
        class_names: As :func:`classification_report`.
        top_k: As :func:`classification_report`.
        landmarks: As :func:`keras_hybrid.evaluation.predict`.

    Returns:
        As :func:`classification_report`.

    Raises:
        ValueError: As :func:`classification_report` and :func:`keras_hybrid.evaluation.predict`.
    """
    images = np.asarray(images)
    blocks = predict_batches(model, images, batch_size, flip, landmarks)
    return _report(labels, images.shape[0] if images.ndim else 0, blocks, class_names, top_k)


def identify(
    gallery_embeddings: ArrayLike,
    gallery_labels: ArrayLike,
    probe_embeddings: ArrayLike,
    probe_labels: ArrayLike,
    ranks: Sequence[int] = (1, 5),
) -> IdentificationResult:
    """Find each probe's person among the people of a gallery (closed set, cosine similarity).

    A person's score is that of their most similar gallery image, and people, not images, are
    ranked. Where scores tie, the probe's own person comes last: embeddings that are all alike
    find nobody.

    Args:
        gallery_embeddings: Floats (gallery, dim), normalised or not.
        gallery_labels: The person on each gallery image, (gallery,): integers or strings.
        probe_embeddings: Floats (probes, dim).
        probe_labels: The person on each probe, (probes,).
        ranks: Ranks to report.

    Returns:
        The rate at each rank (one with k ≥ people is 1 by definition), and each probe's rank.

    Raises:
        ValueError: If shapes disagree, something is empty, an embedding is not finite or is all
            zeros, a rank is below 1, or a probe's person is not in the gallery.
    """
    gallery = unit_embeddings(gallery_embeddings, gallery_labels, "gallery_")
    probes = unit_embeddings(probe_embeddings, probe_labels, "probe_")
    if gallery.shape[1] != probes.shape[1]:
        raise ValueError(
            "gallery_embeddings and probe_embeddings must have the same dim, got "
            f"{gallery.shape[1]} and {probes.shape[1]}."
        )
    if not ranks or min(ranks) < 1:
        raise ValueError(f"ranks must hold integers of at least 1, got {ranks!r}.")
    people, gallery_person = np.unique(np.asarray(gallery_labels), return_inverse=True)
    probe_labels = np.asarray(probe_labels)
    strangers = np.setdiff1d(probe_labels, people)
    if strangers.size:
        raise ValueError(
            f"{strangers.size} people among the probes are not in the gallery, e.g. "
            f"{strangers[0]!s}: identification here is closed-set."
        )
    order = np.argsort(gallery_person, kind="stable")
    first_of_person = np.searchsorted(gallery_person[order], np.arange(len(people)))
    gallery = gallery[order]
    probe_person = np.searchsorted(people, probe_labels)
    probe_ranks = np.empty(len(probes), "int64")
    # So many scores at once: a gallery may hold a million images.
    step = max(1, _SCORES_AT_ONCE // len(gallery))
    for start in range(0, len(probes), step):
        rows = slice(start, start + step)
        # The best of each person's images; images of one person lie side by side.
        scores = np.maximum.reduceat(probes[rows] @ gallery.T, first_of_person, axis=1)
        own = np.take_along_axis(scores, probe_person[rows, None], axis=1)
        probe_ranks[rows] = (scores >= own - _ROUNDING).sum(axis=1)
    probe_ranks.setflags(write=False)
    return IdentificationResult(
        rates={int(rank): float(np.mean(probe_ranks <= rank)) for rank in ranks},
        probe_ranks=probe_ranks,
    )


def _predicted_and_places(scores: np.ndarray, y_true: np.ndarray) -> np.ndarray:
    """Return the class with the highest score and the own class's place from 0, int64 (2, n)."""
    if np.isnan(scores.astype("float32", copy=False)).any():
        raise ValueError("scores has NaN values.")
    own = np.take_along_axis(scores, y_true[:, None], axis=1)
    tied_before = (scores == own) & (np.arange(scores.shape[1]) < y_true[:, None])
    places = (scores > own).sum(axis=1) + tied_before.sum(axis=1)
    return np.stack([scores.argmax(axis=1), places]).astype("int64")


def _class_ids(y_true: ArrayLike, count: int, classes: int) -> np.ndarray:
    y_true = np.asarray(y_true)
    if y_true.shape == (count, classes) and y_true.ndim == 2 and classes > 1:
        return y_true.argmax(axis=1).astype("int64")
    if y_true.shape == (count, 1):
        y_true = y_true[:, 0]
    if y_true.shape != (count,):
        raise ValueError(
            f"y_true must hold class ids ({count},) or one-hot labels ({count}, {classes}), got "
            f"{y_true.shape}."
        )
    ids = y_true.astype("int64")
    if (ids != y_true).any() or ids.min() < 0 or ids.max() >= classes:
        raise ValueError(
            f"y_true must hold integers in [0, {classes}), got values from {y_true.min()} to "
            f"{y_true.max()}."
        )
    return ids


def _class_names(class_names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    names = tuple(str(name) for name in (range(classes) if class_names is None else class_names))
    if len(names) != classes:
        raise ValueError(f"class_names must hold {classes} names, got {len(names)}.")
    return names


def unit_embeddings(embeddings: ArrayLike, labels: ArrayLike, kind: str = "") -> np.ndarray:
    """Check embeddings and their labels, and divide each embedding by its length.

    Args:
        embeddings: Floats (n, dim), not empty.
        labels: One for each, (n,).
        kind: What the arguments' names begin with, for messages.

    Returns:
        float64 (n, dim).

    Raises:
        ValueError: If shapes disagree, or an embedding is not finite or is all zeros.
    """
    rows = np.asarray(embeddings)
    if rows.ndim != 2 or rows.size == 0 or np.shape(labels) != rows.shape[:1]:
        raise ValueError(
            f"{kind}embeddings must have shape (n, dim), not empty, and {kind}labels (n,); got "
            f"{rows.shape} and {np.shape(labels)}."
        )
    rows = rows.astype("float64")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise ValueError(f"{kind}embeddings has rows with NaN or infinite values, or all zeros.")
    return rows / lengths
